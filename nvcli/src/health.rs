//! Whether what is attached is also seen: said in words, with what to do about it.
//!
//! That no frame of a container comes can mean that it is silent, or that we are blind. What its own interface counted in
//! the same time tells the two apart.

use std::fmt;
use std::time::{Duration, Instant};

use nvcapture::{Frame, SourceStats, Timestamp};
use nvflow::MeterStats;
use nvnet::{Attachment, EX_PREFIX, Mode, Netns};
use serde::Serialize;

use crate::escape;
use crate::render::text::{count, grouped};

/// Frames of one attached interface that came through nv-br. `[out of the container, into it]` where there are two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) frames: [u64; 2],
    /// Octets on the wire.
    pub(crate) octets: [u64; 2],
    /// Frames whose checksum was left to a device that does not exist (`CHECKSUM_PARTIAL`).
    pub(crate) partial: u64,
    pub(crate) last: Timestamp,
}

impl Seen {
    pub(crate) const fn total(&self) -> u64 {
        self.frames[0] + self.frames[1]
    }

    /// Adds what came through another ring.
    pub(crate) fn merge(&mut self, other: &Self) {
        for way in [0, 1] {
            self.frames[way] += other.frames[way];
            self.octets[way] += other.octets[way];
        }
        self.partial += other.partial;
        self.last = self.last.max(other.last);
    }
}

/// What had been seen of every interface some while ago: who was seen then may have become invisible since.
#[derive(Debug)]
pub(crate) struct Earlier {
    /// Of two looks, the older one first; what came since that one is judged.
    at: [Instant; 2],
    seen: [Vec<Seen>; 2],
}

impl Earlier {
    /// Between two looks; twice as long ago is forgotten.
    const SPAN: Duration = Duration::from_secs(10);

    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            at: [now; 2],
            seen: [Vec::new(), Vec::new()],
        }
    }

    /// Looks at what is seen now, if it is time to.
    pub(crate) fn go_on(&mut self, now: Instant, all: &[Seen]) {
        if now.saturating_duration_since(self.at[1]) < Self::SPAN {
            return;
        }
        self.at = [self.at[1], now];
        self.seen.swap(0, 1);
        self.seen[1].clear();
        self.seen[1].extend_from_slice(all);
    }

    /// What came of an interface since the older look, and how long ago that was.
    pub(crate) fn since(&self, id: u16, seen: &Seen, now: Instant) -> (Seen, Duration) {
        let before = self.seen[0].get(usize::from(id)).copied();
        let before = before.unwrap_or_default();
        let less = |now: u64, before: u64| now.saturating_sub(before);
        let each = |now: [u64; 2], before: [u64; 2]| [0, 1].map(|way| less(now[way], before[way]));
        let since = Seen {
            frames: each(seen.frames, before.frames),
            octets: each(seen.octets, before.octets),
            partial: less(seen.partial, before.partial),
            last: seen.last,
        };
        (since, now.saturating_duration_since(self.at[0]))
    }
}

/// Counts frames by the marks they carry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Vec<Seen>);

impl Tally {
    /// Counts a frame that was read from nv-br.
    #[inline]
    pub(crate) fn count(&mut self, frame: &Frame<'_>) {
        let Some((id, way)) = mark(frame.octets()) else {
            return;
        };
        if self.0.len() <= id {
            self.0.resize(id + 1, Seen::default());
        }
        let meta = frame.meta();
        if let Some(seen) = self.0.get_mut(id) {
            seen.frames[way] += 1;
            seen.octets[way] += u64::from(meta.wire_len);
            seen.partial += u64::from(meta.checksum_not_ready);
            seen.last = meta.timestamp;
        }
    }

    /// Of the interface with this id.
    pub(crate) fn of(&self, id: u16) -> Seen {
        self.0.get(usize::from(id)).copied().unwrap_or_default()
    }

    pub(crate) fn all(&self) -> &[Seen] {
        &self.0
    }
}

/// The id that a frame's addresses carry, and whether it leaves the container (0) or enters it (1).
fn mark(octets: &[u8]) -> Option<(usize, usize)> {
    let addresses = octets.first_chunk::<12>()?;
    let id_in = |address: &[u8]| match *address {
        // The group bit is set where the mark stands for a group's address.
        [a, 0x65, 0x75, 0x56, high, low] if a & !1 == 0x4e => {
            Some(usize::from(u16::from_be_bytes([high, low])))
        }
        _ => None,
    };
    let (destination, source) = addresses.split_at(6);
    id_in(source)
        .map(|id| (id, 0))
        .or_else(|| id_in(destination).map(|id| (id, 1)))
}

/// Frames that the container's own interface sent and received since it was made: the truth that ours is held against.
pub(crate) fn counted(host: &Netns, attachment: &Attachment) -> Option<[u64; 2]> {
    if attachment.mode == Mode::Mirror {
        // The port is the other end of the container's pair: what it receives, the container sent.
        let links = nvnet::links(host).ok()?;
        let stats = links
            .iter()
            .find(|link| link.name == attachment.port)?
            .stats;
        return Some([stats.rx_packets, stats.tx_packets]);
    }
    let links = nvnet::links(&attachment.netns()?).ok()?;
    // Several interfaces may be attached; the original of this one has kept its address.
    let original = links
        .iter()
        .find(|link| link.name.starts_with(EX_PREFIX) && link.mac == Some(attachment.mac))?;
    Some([original.stats.tx_packets, original.stats.rx_packets])
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less than could be.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// Something to be told. Names in it are as they are: to be escaped where it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) verdict: Verdict,
    pub(crate) what: String,
    pub(crate) remedy: Option<String>,
}

impl Finding {
    /// What an attachment that is not whole lacks.
    pub(crate) fn damaged(whose: Whose<'_>, why: &str) -> Self {
        let Whose { name, interface } = whose;
        Self::new(
            Verdict::Fail,
            format!("{name} {interface}: {why}"),
            String::from("nvcli repair"),
        )
    }

    fn new(verdict: Verdict, what: String, remedy: impl Into<Option<String>>) -> Self {
        Self {
            verdict,
            what,
            remedy: remedy.into(),
        }
    }
}

/// Frames that may be counted and not yet seen, or the other way round.
pub(crate) const UNDERWAY: u64 = 5;
/// Frames in one direction from which on none in the other is worth a word.
const ONE_SIDED: u64 = 10;

/// Whose frames are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'a> {
    pub(crate) name: &'a str,
    pub(crate) interface: &'a str,
}

/// What is to be said of the frames seen of one attached interface, beside those that it `counted` itself in the same time or later.
pub(crate) fn of_frames(
    whose: Whose<'_>,
    seen: &Seen,
    counted: Option<[u64; 2]>,
    time: Duration,
) -> Option<Finding> {
    let Whose { name, interface } = whose;
    let again = || {
        let name = escape::shell(name);
        format!("nvcli repair; if that finds nothing: nvcli detach {name} && nvcli attach {name}")
    };
    let time = format!("{} s", time.as_secs().max(1));
    if seen.total() == 0 {
        return Some(match counted.map(|[out, into]| out + into) {
            Some(passed) if passed > UNDERWAY => Finding::new(
                Verdict::Fail,
                format!(
                    "{name} {interface}: attached, but no frame of it was seen, while its interface counted {}",
                    grouped(passed)
                ),
                again(),
            ),
            Some(_) => Finding::new(
                Verdict::Ok,
                format!(
                    "{name} {interface}: no frame in {time}; its interface counts none either, so it is silent"
                ),
                None,
            ),
            None => Finding::new(
                Verdict::Warn,
                format!(
                    "{name} {interface}: attached, but no frame of it was seen in {time}; its own counters cannot be read"
                ),
                again(),
            ),
        });
    }
    for (way, seen_way, missing) in [(0, "leave", "enter"), (1, "enter", "leave")] {
        if seen.frames[way] < ONE_SIDED || seen.frames[1 - way] > 0 {
            continue;
        }
        let only = format!(
            "{name} {interface}: only frames that {seen_way} it were seen ({})",
            grouped(seen.frames[way])
        );
        return Some(match counted.map(|counted| counted[1 - way]) {
            Some(passed) if passed > UNDERWAY => Finding::new(
                Verdict::Fail,
                format!("{only}, none of the {} that {missing} it", grouped(passed)),
                format!(
                    "nvcli doctor shows filters of other tools, which may take them first; {}",
                    again()
                ),
            ),
            Some(_) => Finding::new(
                Verdict::Warn,
                format!("{only}, and its interface counts none that {missing} it"),
                String::from(if way == 0 {
                    "nothing answers: look at the other end, and at the routes on the way back"
                } else {
                    "it does not answer: look at what should, inside the container"
                }),
            ),
            None => Finding::new(
                Verdict::Warn,
                format!("{only}, none that {missing} it"),
                again(),
            ),
        });
    }
    None
}

/// The share of all frames with checksums that nobody filled in, where it is worth a word.
pub(crate) fn of_checksums<'s>(all: impl IntoIterator<Item = &'s Seen>) -> Option<Finding> {
    let (mut total, mut partial) = (0, 0);
    for seen in all {
        total += seen.total();
        partial += seen.partial;
    }
    if total < ONE_SIDED || partial * 10 < total {
        return None;
    }
    Some(Finding::new(
        Verdict::Ok,
        format!(
            "{} % of the frames have no checksum yet (offload), as is right between containers of one host",
            partial * 100 / total
        ),
        String::from(
            "nothing to do; where a tool finds them wrong in a capture, switch its checksum validation off",
        ),
    ))
}

/// What was lost on the way from nv-br into the table.
pub(crate) fn of_losses(meter: &MeterStats, source: &SourceStats) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = meter.frames + source.dropped;
    if source.dropped > 0 {
        let share = source.dropped as f64 * 100.0 / all.max(1) as f64;
        findings.push(Finding::new(
            Verdict::Fail,
            format!(
                "{} frames ({share:.1} %) were dropped by the kernel before they were read: counts are too low",
                grouped(source.dropped)
            ),
            String::from("a filter that leaves out what is not wanted (nvcli flows --watch 'not port 9100'), or more CPU (nice -n -10)"),
        ));
    }
    if meter.refused > 0 {
        findings.push(Finding::new(
            Verdict::Fail,
            format!(
                "{} frames of new connections found the table full",
                grouped(meter.refused)
            ),
            String::from("a larger --max-connections, or a shorter --idle-timeout"),
        ));
    }
    let evicted = meter.evicted_ended + meter.evicted_embryonic + meter.evicted_idle;
    if evicted > 0 {
        findings.push(Finding::new(
            Verdict::Warn,
            format!(
                "{} connections were given up for new ones: the table was full",
                grouped(evicted)
            ),
            String::from("a larger --max-connections, or a shorter --idle-timeout"),
        ));
    }
    if meter.unparsed > 0 {
        findings.push(Finding::new(
            Verdict::Warn,
            format!(
                "{} frames could not be read: malformed, or cut too short",
                count(meter.unparsed)
            ),
            String::from("a larger --snaplen; nvcli capture shows what they are"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use nvcapture::FrameMeta;

    use super::*;

    const WEB: Whose<'static> = Whose {
        name: "web-1",
        interface: "eth0",
    };
    const TIME: Duration = Duration::from_secs(12);

    fn seen(out: u64, into: u64) -> Seen {
        Seen {
            frames: [out, into],
            ..Seen::default()
        }
    }

    #[test]
    fn blind_is_told_from_silent() {
        let of = |counted| of_frames(WEB, &seen(0, 0), counted, TIME).expect("a finding");
        let blind = of(Some([200, 30]));
        assert_eq!(blind.verdict, Verdict::Fail);
        assert!(blind.what.contains("counted 230") && blind.remedy.is_some());
        let silent = of(Some([0, 2]));
        assert_eq!((silent.verdict, silent.remedy), (Verdict::Ok, None));
        assert_eq!(of(None).verdict, Verdict::Warn);
    }

    #[test]
    fn one_direction_alone_is_held_against_the_interface() {
        let of = |out, into, counted| of_frames(WEB, &seen(out, into), Some(counted), TIME);
        assert_eq!(of(34, 0, [34, 30]).map(|f| f.verdict), Some(Verdict::Fail));
        assert_eq!(of(0, 34, [30, 34]).map(|f| f.verdict), Some(Verdict::Fail));
        let unanswered = of(34, 0, [34, 0]).expect("a finding");
        assert_eq!(unanswered.verdict, Verdict::Warn);
        assert!(unanswered.what.contains("none that enter it"));
        assert_eq!(of(9, 0, [9, 30]), None, "too few to say");
        assert_eq!(of(34, 1, [34, 30]), None);
    }

    #[test]
    fn the_share_of_open_checksums_is_told_from_a_tenth_on() {
        let of = |partial| {
            let some = Seen {
                partial,
                ..seen(60, 40)
            };
            of_checksums(&[some, seen(0, 0)])
        };
        assert_eq!(of(9), None);
        let told = of(87).expect("a finding");
        assert!(told.what.starts_with("87 %"), "{}", told.what);
        assert_eq!(told.verdict, Verdict::Ok);
    }

    #[test]
    fn losses_are_told_only_when_there_are_some() {
        assert_eq!(
            of_losses(&MeterStats::default(), &SourceStats::default()),
            []
        );
        let meter = MeterStats {
            frames: 900,
            refused: 1,
            evicted_idle: 2,
            unparsed: 3,
            ..MeterStats::default()
        };
        let source = SourceStats {
            dropped: 100,
            ..SourceStats::default()
        };
        let told = of_losses(&meter, &source);
        assert_eq!(told.len(), 4);
        assert!(
            told[0].what.starts_with("100 frames (10.0 %)"),
            "{}",
            told[0].what
        );
        assert!(told.iter().all(|finding| finding.remedy.is_some()));
    }

    #[test]
    fn who_has_become_invisible_is_told_from_who_is_seen() {
        let began = Instant::now();
        let mut earlier = Earlier::new(began);
        let mut now = [seen(0, 0), seen(0, 0)];
        for second in 1..=45 {
            let at = began + Duration::from_secs(second);
            // The second one is seen for five seconds.
            now[0].frames[0] += 3;
            now[1].frames[1] += u64::from(second <= 5);
            earlier.go_on(at, &now);
            let (first, time) = earlier.since(0, &now[0], at);
            assert!(first.frames[0] >= 3 * second.min(10) && first.frames[0] <= 3 * 20);
            assert!(time.as_secs() >= second.min(10) && time.as_secs() <= 20);
            let (second_one, _) = earlier.since(1, &now[1], at);
            assert_eq!(second_one.total() > 0, second < 20, "{second}");
            assert_eq!(earlier.since(9, &Seen::default(), at).0, Seen::default());
        }
    }

    #[test]
    fn frames_are_counted_by_their_mark() {
        let mut tally = Tally::default();
        let mut add = |destination: [u8; 6], source: [u8; 6], partial| {
            let octets = [&destination[..], &source[..], &[8, 0]].concat();
            let mut meta = FrameMeta::ethernet(Timestamp::from_nanos(7), 1_000);
            meta.checksum_not_ready = partial;
            tally.count(&Frame::new(&octets, meta));
        };
        let (other, web) = ([2, 0, 0, 0, 0, 1], [0x4e, 0x65, 0x75, 0x56, 1, 2]);
        add(other, web, true);
        add(web, other, false);
        add([0x4f, 0x65, 0x75, 0x56, 1, 2], other, false);
        add(other, other, false);
        tally.count(&Frame::new(
            &[0; 5],
            FrameMeta::ethernet(Timestamp::ZERO, 5),
        ));
        let expected = Seen {
            frames: [1, 2],
            octets: [1_000, 2_000],
            partial: 1,
            last: Timestamp::from_nanos(7),
        };
        assert_eq!(tally.all().len(), 0x103);
        assert_eq!(tally.all()[0x102], expected);
        assert_eq!(tally.all().iter().map(Seen::total).sum::<u64>(), 3);
    }
}
