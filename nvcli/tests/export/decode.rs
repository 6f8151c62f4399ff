//! A reader of IPFIX, written from RFC 7011 and not from the writer.

use std::collections::HashMap;

use libtest_mimic::Failed;

/// An element: enterprise (0: IANA) and number.
pub(crate) type Key = (u32, u16);

/// What a collector knows of a session.
#[derive(Default)]
pub(crate) struct Decoder {
    templates: HashMap<u16, (Vec<(Key, usize)>, bool)>,
    /// Records of connections.
    pub(crate) records: Vec<HashMap<Key, Vec<u8>>>,
    /// Records that options templates describe.
    pub(crate) options: Vec<HashMap<Key, Vec<u8>>>,
    /// Template sets seen.
    pub(crate) template_sets: usize,
    /// The number that the next message must have.
    sequence: u32,
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Failed> {
        let (head, tail) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| format!("{length} octets wanted, {} left", self.0.len()))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self, length: usize) -> Result<u32, Failed> {
        Ok(number(self.take(length)?) as u32)
    }
}

/// Octets as the number they are.
pub(crate) fn number(octets: &[u8]) -> u64 {
    octets
        .iter()
        .fold(0, |sum, octet| sum << 8 | u64::from(*octet))
}

/// `thing` where a record has none.
pub(crate) fn of(record: &HashMap<Key, Vec<u8>>, key: Key) -> Option<u64> {
    record.get(&key).map(|octets| number(octets))
}

impl Decoder {
    /// Another connection: nothing is known any more.
    pub(crate) fn begin_anew(&mut self) {
        self.templates.clear();
        self.sequence = 0;
    }

    pub(crate) fn message(&mut self, message: &[u8]) -> Result<(), Failed> {
        let mut header = Cursor(message);
        let (version, length) = (header.number(2)?, header.number(2)?);
        let (_time, sequence, _domain) = (header.number(4)?, header.number(4)?, header.number(4)?);
        if version != 10 || length as usize != message.len() {
            return Err(format!("version {version}, length {length}").into());
        }
        if sequence != self.sequence {
            return Err(format!("sequence {sequence}, expected {}", self.sequence).into());
        }
        while !header.0.is_empty() {
            let (id, length) = (header.number(2)?, header.number(2)? as usize);
            let body = header.take(
                length
                    .checked_sub(4)
                    .ok_or("a set shorter than its header")?,
            )?;
            self.set(id as u16, Cursor(body))?;
        }
        Ok(())
    }

    fn set(&mut self, id: u16, mut body: Cursor<'_>) -> Result<(), Failed> {
        if id == 2 || id == 3 {
            self.template_sets += usize::from(id == 2);
            while !body.0.is_empty() {
                let (template, fields) = (body.number(2)? as u16, body.number(2)?);
                if id == 3 {
                    let _scope = body.number(2)?;
                }
                let mut specifiers = Vec::new();
                for _ in 0..fields {
                    let (element, length) = (body.number(2)? as u16, body.number(2)? as usize);
                    let enterprise = if element & 0x8000 == 0 {
                        0
                    } else {
                        body.number(4)?
                    };
                    specifiers.push(((enterprise, element & 0x7fff), length));
                }
                let old = self
                    .templates
                    .insert(template, (specifiers.clone(), id == 3));
                if old.is_some_and(|(old, _)| old != specifiers) {
                    return Err(format!("template {template} became another").into());
                }
            }
            return Ok(());
        }
        let (specifiers, is_option) = self
            .templates
            .get(&id)
            .ok_or_else(|| format!("no template {id}"))?;
        while !body.0.is_empty() {
            let mut record = HashMap::new();
            for &(key, length) in specifiers {
                let length = match length {
                    65_535 => match body.number(1)? {
                        255 => body.number(2)? as usize,
                        short => short as usize,
                    },
                    fixed => fixed,
                };
                record.insert(key, body.take(length)?.to_vec());
            }
            let to = if *is_option {
                &mut self.options
            } else {
                &mut self.records
            };
            to.push(record);
            self.sequence += 1;
        }
        Ok(())
    }
}

/// Splits a stream into its messages; what is left behind the last whole one is told.
pub(crate) fn messages(mut stream: &[u8]) -> (Vec<&[u8]>, usize) {
    let mut messages = Vec::new();
    while let Some(length) = stream.get(2..4) {
        let length = number(length) as usize;
        let Some((message, rest)) = stream.split_at_checked(length.max(16)) else {
            break;
        };
        messages.push(message);
        stream = rest;
    }
    (messages, stream.len())
}
