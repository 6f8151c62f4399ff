//! Many meters side by side: which one a frame is for.

use std::num::NonZeroU16;

use nvcapture::Frame;
use nvcapture::wire::{Headers, Plain};

use crate::clock::Clock;
use crate::fragments::Fragments;
use crate::{FlowKey, Identify, KeyHasher, MeterConfig};

/// Splits frames among meters, one to a thread: both directions of a connection, and the fragments of its packets, go to the same one.
///
/// It reads what a [`Meter`](crate::Meter) under the same configuration reads (tunnels, VLANs, observation points), so that all meters
/// together make the records that one of them would make of all frames. For that they need the same time: what one of them is not shown
/// may be what tells it that a connection has been idle. Call [`Meter::expire`](crate::Meter::expire) on each with the time of the
/// first frame before any other, and from time to time, and at the end, with that of the latest. Four differences remain: a table that
/// is full gives up connections by what it holds itself, packets of more fragmented datagrams at once than a meter remembers are
/// remembered by each, frames that are out of order by chance at the end of a timeout may fall on the other side of it, and several meters
/// learn no [names](Identify::names): who asks for one and who connects to it are not the same one's.
///
/// Rings that the kernel splits frames among (a fanout group) need none of this, as long as the kernel's rule keeps a
/// connection, and its fragments, together: by the pair of addresses, say.
///
/// ```
/// use std::num::NonZeroU16;
/// use nvflow::{FlowRecord, Meter, MeterConfig, MeterStats, Shards};
///
/// # fn frames() -> Vec<nvcapture::Frame<'static>> { Vec::new() }
/// let mut shards = Shards::new(&MeterConfig::default(), NonZeroU16::MIN.saturating_add(1));
/// let mut meters = [Meter::new(shards.config())?, Meter::new(shards.config())?];
/// let mut records: Vec<FlowRecord> = Vec::new();
/// for frame in frames() {
///     let _ = meters[shards.of(&frame)].observe([frame], &mut records)?;
/// }
/// let mut total = MeterStats::default();
/// for meter in &mut meters {
///     let _ = meter.finish(&mut records)?;
///     total.merge(&meter.stats());
/// }
/// assert!(total.is_balanced());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Shards {
    config: MeterConfig,
    count: NonZeroU16,
    hasher: KeyHasher,
    fragments: Fragments,
    clock: Clock,
}

impl Shards {
    /// For `count` meters, which together are to be as one with `config`.
    pub fn new(config: &MeterConfig, count: NonZeroU16) -> Self {
        // Not the hash by which a table places what it holds: within one shard that would be used in one part only.
        let hasher = config.hash_key.map_or_else(KeyHasher::random, |[a, b]| {
            KeyHasher::new([b ^ 0x9e37_79b9_7f4a_7c15, a])
        });
        Self {
            config: *config,
            count,
            hasher,
            fragments: Fragments::new(),
            clock: Clock::default(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.get().into()
    }

    /// What each meter is told: the same, but for its share of the connections, and of the memory for what they speak.
    pub fn config(&self) -> MeterConfig {
        let count = self.count();
        MeterConfig {
            max_connections: self.config.max_connections.div_ceil(count),
            identify: self.config.identify.map(|whole| Identify {
                pieces: whole.pieces.div_ceil(count),
                memory: whole.memory.div_ceil(count),
                // Who asks and who connects are not the same one's.
                names: if count == 1 { whole.names } else { 0 },
            }),
            ..self.config
        }
    }

    /// Which meter `frame` is for, from 0 on; frames are to be shown in the order in which they came. What no key can be made of is the
    /// first one's, which counts it.
    #[inline]
    pub fn of(&mut self, frame: &Frame<'_>) -> usize {
        let now = self.clock.advance(frame.timestamp().as_micros());
        if !self.config.decapsulate
            && frame.meta().vlan.is_none()
            && let Some(plain) = Plain::of(frame)
        {
            let (observed, _) = self.config.observation.of(Some(&plain.ethernet));
            return self.shard(&FlowKey::of_plain(&plain, observed).0);
        }
        self.of_odd(frame, now)
    }

    #[inline(never)]
    fn of_odd(&mut self, frame: &Frame<'_>, now: u64) -> usize {
        let Ok(outer) = Headers::parse(frame) else {
            return 0;
        };
        let inner = self
            .config
            .decapsulate
            .then(|| outer.decapsulate())
            .flatten();
        let headers = inner.as_ref().unwrap_or(&outer);
        let (observed, _) = self.config.observation.of(headers.ethernet.as_ref());
        let (mut key, direction) = FlowKey::of_observed(headers, observed, self.config.vlan_in_key);
        if let Some(fragment) = headers.fragment
            && let Some(found) =
                self.fragments
                    .resolve(&self.hasher, fragment, (key, direction), now)
        {
            key = found.0;
        }
        self.shard(&key)
    }

    #[inline]
    fn shard(&self, key: &FlowKey) -> usize {
        (((self.hasher.hash(key) >> 32) * u64::from(self.count.get())) >> 32) as usize
    }
}
