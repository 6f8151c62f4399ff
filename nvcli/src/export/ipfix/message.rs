//! Messages: templates where they are needed, then records.
//!
//! A record's template has the elements that the record has, so that what has no meaning is not there. A text more or less
//! makes no new template: one that has it already takes the record, with an empty text.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use nvflow::FlowRecord;

use super::element::{self, Element, Owner, put_text};
use crate::export::config::IpfixTo;
use crate::export::lane::{Lane, Lost};

/// Octets of a message's header.
const HEADER: usize = 16;
/// Octets of a set's header.
const SET: usize = 4;
const TEMPLATES: u16 = 2;
const OPTIONS_TEMPLATES: u16 = 3;
/// The options template that tells our elements' types (RFC 5610).
const TYPES: u16 = 256;
/// Templates from which on records share those of others, with 0 where they have nothing.
const MOST: usize = 256;

struct Template {
    id: u16,
    /// Its elements, one bit each.
    mask: u128,
    elements: Vec<usize>,
    /// The collector has it.
    is_announced: bool,
}

/// Writes messages of one session.
pub(super) struct Messages {
    domain: u32,
    enterprise: u32,
    most: usize,
    tells_types: bool,
    elements: Vec<Element>,
    templates: Vec<Template>,
    /// The template for the elements of a record.
    by_mask: HashMap<u128, usize>,
    /// Data records sent before.
    sequence: u32,
    /// Own elements whose types the collector was told, and whether those were all.
    described: usize,
    is_described: bool,
    record: Vec<u8>,
}

/// A message and what is in it.
#[derive(Default)]
pub(super) struct Message {
    pub(super) octets: Vec<u8>,
    /// The records in it, which are sent again if it does not arrive.
    pub(super) records: Vec<Arc<FlowRecord>>,
    /// Where the set begins that is being written, and its number.
    set: Option<(usize, u16)>,
    /// Data records in it, also those that are not of connections.
    data: u32,
}

impl Message {
    fn begin(&mut self) {
        self.octets.clear();
        self.octets.resize(HEADER, 0);
        self.records.clear();
        self.set = None;
        self.data = 0;
    }

    fn is_empty(&self) -> bool {
        self.octets.len() <= HEADER
    }

    /// Octets that `more` of set `id` would make it.
    fn length_with(&self, id: u16, more: usize) -> usize {
        let is_open = self.set.is_some_and(|(_, open)| open == id);
        self.octets.len() + more + if is_open { 0 } else { SET }
    }

    /// Opens set `id` if it is not.
    fn open(&mut self, id: u16) {
        if self.set.is_some_and(|(_, open)| open == id) {
            return;
        }
        self.close();
        self.set = Some((self.octets.len(), id));
        self.octets.extend(id.to_be_bytes());
        self.octets.extend([0; 2]);
    }

    fn close(&mut self) {
        if let Some((at, _)) = self.set.take() {
            let length = (self.octets.len() - at) as u16;
            self.octets[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
}

impl Messages {
    /// For messages to `to`.
    pub(super) fn new(to: &IpfixTo) -> Self {
        Self {
            domain: to.domain,
            enterprise: to.enterprise,
            most: to.message.min(usize::from(u16::MAX)),
            tells_types: to.types,
            elements: Element::all(),
            templates: Vec::new(),
            by_mask: HashMap::new(),
            sequence: 0,
            described: 0,
            is_described: !to.types,
            record: Vec::new(),
        }
    }

    /// The collector knows nothing any more.
    pub(super) fn begin_anew(&mut self) {
        self.announce_again();
        self.describe_again();
        self.sequence = 0;
    }

    /// Templates are sent again before they are next needed.
    pub(super) fn announce_again(&mut self) {
        for template in &mut self.templates {
            template.is_announced = false;
        }
    }

    /// The types of our elements are told again.
    pub(super) fn describe_again(&mut self) {
        (self.described, self.is_described) = (0, !self.tells_types);
    }

    /// `message` did not arrive: its records are put back, and their numbers used again.
    pub(super) fn take_back(
        &mut self,
        message: &mut Message,
        records: &mut VecDeque<Arc<FlowRecord>>,
    ) {
        self.sequence = self.sequence.wrapping_sub(message.data);
        self.announce_again();
        self.describe_again();
        for record in message.records.drain(..).rev() {
            records.push_front(record);
        }
    }

    /// Fills `message` with records from the front, and what the collector needs to read them; `false` when there is nothing to send.
    pub(super) fn fill(
        &mut self,
        message: &mut Message,
        records: &mut VecDeque<Arc<FlowRecord>>,
        lane: &Lane,
    ) -> bool {
        message.begin();
        while let Some(record) = records.front() {
            let Some(template) = self.template(record) else {
                // There are more fields than bits, which a test forbids.
                records.pop_front();
                lane.lost(Lost::TooLarge, 1);
                continue;
            };
            if !self.describe(message) {
                break;
            }
            self.record.clear();
            for &place in &self.templates[template].elements {
                let element = &self.elements[place];
                element.put(element.value(record), &mut self.record);
            }
            let id = self.templates[template].id;
            let announcement = if self.templates[template].is_announced {
                0
            } else {
                self.announcement(template).len() + SET
            };
            let needed = message.length_with(id, self.record.len());
            if needed.max(message.octets.len() + announcement) > self.most {
                if message.is_empty() {
                    records.pop_front();
                    lane.lost(Lost::TooLarge, 1);
                    continue;
                }
                break;
            }
            if announcement > 0 {
                let announcement = self.announcement(template);
                message.open(TEMPLATES);
                message.octets.extend(announcement);
                self.templates[template].is_announced = true;
                // Beside its template there may be no room left for the record.
                if message.length_with(id, self.record.len()) > self.most {
                    break;
                }
            }
            message.open(id);
            message.octets.extend(&self.record);
            message.data += 1;
            message.records.extend(records.pop_front());
        }
        if message.is_empty() {
            return false;
        }
        message.close();
        self.head(message);
        true
    }

    /// Writes the header and counts the records.
    fn head(&mut self, message: &mut Message) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let length = message.octets.len() as u16;
        let mut header = Vec::with_capacity(HEADER);
        header.extend(10_u16.to_be_bytes());
        header.extend(length.to_be_bytes());
        header.extend((now.as_secs() as u32).to_be_bytes());
        header.extend(self.sequence.to_be_bytes());
        header.extend(self.domain.to_be_bytes());
        message.octets[..HEADER].copy_from_slice(&header);
        self.sequence = self.sequence.wrapping_add(message.data);
    }

    /// The template that `record` goes by.
    fn template(&mut self, record: &FlowRecord) -> Option<usize> {
        let mut mask = 0_u128;
        let mut is_news = false;
        for (place, element) in self.elements.iter_mut().enumerate() {
            let Some(value) = element.value(record) else {
                continue;
            };
            is_news |= element.learn(value);
            mask |= 1_u128.checked_shl(place as u32)?;
        }
        if is_news {
            self.describe_again();
        }
        if let Some(&template) = self.by_mask.get(&mask) {
            return Some(template);
        }
        let many = self.templates.len() >= MOST;
        let must_agree = self
            .elements
            .iter()
            .enumerate()
            .fold(0, |bits, (place, element)| {
                let must = if many {
                    element.is_firm
                } else {
                    !element.is_soft
                };
                bits | (u128::from(must) << place)
            });
        let is_alike = |template: &&Template| (template.mask ^ mask) & must_agree == 0;
        let takes = |template: &Template| mask & !template.mask == 0;
        let found = self
            .templates
            .iter()
            .rposition(|template| is_alike(&template) && takes(template));
        let template = match found {
            Some(template) => template,
            None => {
                // With all that those had that it takes the place of, so that there is no third one for the two together.
                let alike = self.templates.iter().filter(is_alike);
                let mask = alike.fold(mask, |mask, template| mask | template.mask);
                let has = |place: &usize| (mask >> place) & 1 == 1;
                self.templates.push(Template {
                    id: TYPES + 1 + u16::try_from(self.templates.len()).ok()?,
                    mask,
                    elements: (0..self.elements.len()).filter(has).collect(),
                    is_announced: false,
                });
                self.templates.len() - 1
            }
        };
        if self.by_mask.len() >= 16 * MOST {
            self.by_mask.clear();
        }
        self.by_mask.insert(mask, template);
        Some(template)
    }

    /// A template's record.
    fn announcement(&self, template: usize) -> Vec<u8> {
        let Template { id, elements, .. } = &self.templates[template];
        let mut out = Vec::new();
        out.extend(id.to_be_bytes());
        out.extend((elements.len() as u16).to_be_bytes());
        for &place in elements {
            let element = &self.elements[place];
            let length = element.kind.map_or(0, element::Type::length);
            let enterprise = match element.owner {
                Owner::Iana => None,
                Owner::Reverse => Some(element::REVERSE),
                Owner::Own => Some(self.enterprise),
            };
            specifier(element.id, length, enterprise, &mut out);
        }
        out
    }

    /// Tells the types of our own elements, as far as there is room; `false` when there is more to tell.
    fn describe(&mut self, message: &mut Message) -> bool {
        /// Enterprise and number (the scope), type, semantics, unit, name.
        const FIELDS: [(u16, u16); 6] = [
            (346, 4),
            (303, 2),
            (339, 1),
            (344, 1),
            (345, 2),
            (341, 65_535),
        ];
        if self.is_described {
            return true;
        }
        let own: Vec<_> = self
            .elements
            .iter()
            .filter(|element| element.owner == Owner::Own)
            .filter_map(|element| Some((element, element.kind?)))
            .collect();
        if self.described == 0 {
            let mut out = Vec::new();
            for number in [TYPES, FIELDS.len() as u16, 2] {
                out.extend(number.to_be_bytes());
            }
            for (id, length) in FIELDS {
                specifier(id, length, None, &mut out);
            }
            if message.length_with(OPTIONS_TEMPLATES, out.len()) > self.most {
                return false;
            }
            message.open(OPTIONS_TEMPLATES);
            message.octets.extend(out);
        }
        for (element, kind) in &own[self.described..] {
            let mut out = Vec::new();
            out.extend(self.enterprise.to_be_bytes());
            out.extend(element.id.to_be_bytes());
            out.push(kind.number());
            out.push(element.semantics);
            out.extend(u16::from(element.units).to_be_bytes());
            put_text(&element.name, &mut out);
            if message.length_with(TYPES, out.len()) > self.most {
                return false;
            }
            message.open(TYPES);
            message.octets.extend(out);
            message.data += 1;
            self.described += 1;
        }
        self.is_described = true;
        true
    }
}

/// A field specifier: number, length, and the enterprise whose number it is.
fn specifier(id: u16, length: u16, enterprise: Option<u32>, out: &mut Vec<u8>) {
    let flag = if enterprise.is_some() { 0x8000 } else { 0 };
    out.extend((id | flag).to_be_bytes());
    out.extend(length.to_be_bytes());
    if let Some(enterprise) = enterprise {
        out.extend(enterprise.to_be_bytes());
    }
}
