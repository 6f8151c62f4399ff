//! QUIC: the ClientHello in Initial packets, whose keys anyone can derive (RFC 9001, section 5.2).

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use hkdf::Hkdf;
use sha2::Sha256;

use super::octets::Octets;

/// What an Initial packet of a client is protected with.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    key: [u8; 16],
    iv: [u8; 12],
    header: [u8; 16],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys { .. }")
    }
}

/// How a version protects its Initial packets.
struct Version {
    salt: [u8; 20],
    labels: [&'static [u8]; 3],
    /// The type of an Initial packet.
    initial: u8,
}

const V1_LABELS: [&[u8]; 3] = [b"quic key", b"quic iv", b"quic hp"];

impl Version {
    fn of(number: u32) -> Option<Self> {
        let (salt, labels, initial) = match number {
            1 => (
                *b"\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a",
                V1_LABELS,
                0,
            ),
            // RFC 9369.
            0x6b33_43cf => (
                *b"\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9",
                [&b"quicv2 key"[..], b"quicv2 iv", b"quicv2 hp"],
                1,
            ),
            // Drafts 29 to 34.
            0xff00_001d..=0xff00_0022 => (
                *b"\xaf\xbf\xec\x28\x99\x93\xd2\x4c\x9e\x97\x86\xf1\x9c\x61\x11\xe0\x43\x90\xa8\x99",
                V1_LABELS,
                0,
            ),
            // Drafts 23 to 28, and mvfst's name for one of them.
            0xff00_0017..=0xff00_001c | 0xface_b002 => (
                *b"\xc3\xee\xf7\x12\xc7\x2e\xbb\x5a\x11\xa7\xd2\x43\x2b\xb4\x63\x65\xbe\xf9\xf5\x02",
                V1_LABELS,
                0,
            ),
            // Drafts 21 and 22, and mvfst's name for one of them.
            0xff00_0015 | 0xff00_0016 | 0xface_b001 => (
                *b"\x7f\xbc\xdb\x0e\x7c\x66\xbb\xe9\x19\x3a\x96\xcd\x21\x51\x9e\xbd\x7a\x02\x64\x4a",
                V1_LABELS,
                0,
            ),
            _ => return None,
        };
        Some(Self {
            salt,
            labels,
            initial,
        })
    }

    fn keys(&self, destination: &[u8]) -> Option<Keys> {
        let (_, initial) = Hkdf::<Sha256>::extract(Some(&self.salt), destination);
        let mut secret = [0; 32];
        expand(&initial, b"client in", &mut secret)?;
        let client = Hkdf::<Sha256>::from_prk(&secret).ok()?;
        let mut keys = Keys {
            key: [0; 16],
            iv: [0; 12],
            header: [0; 16],
        };
        let [key, iv, header] = self.labels;
        expand(&client, key, &mut keys.key)?;
        expand(&client, iv, &mut keys.iv)?;
        expand(&client, header, &mut keys.header)?;
        Some(keys)
    }
}

/// HKDF-Expand-Label without a context (RFC 8446, section 7.1).
fn expand(secret: &Hkdf<Sha256>, label: &[u8], out: &mut [u8]) -> Option<()> {
    let length = (out.len() as u16).to_be_bytes();
    let label_length = [6 + label.len() as u8];
    let info: [&[u8]; 5] = [&length, &label_length, b"tls13 ", label, &[0]];
    secret.expand_multi_info(&info, out).ok()
}

/// What a datagram is, if it is one of QUIC.
#[derive(Debug)]
pub(super) enum Told {
    No,
    /// A packet with a long header, and no ClientHello that can be read.
    Opaque,
    /// An Initial packet; the frames in it were shown.
    Initial(Keys),
}

/// Shows `put` the pieces of the handshake stream in the Initial packets of a client in a datagram: where each begins, and its octets.
///
/// `before` are the keys of an earlier datagram: a client keeps them when it takes over the server's connection id.
pub(super) fn initial(
    datagram: &[u8],
    before: Option<Keys>,
    mut put: impl FnMut(usize, &[u8]),
) -> Told {
    let mut told = Told::No;
    let mut rest = datagram;
    let mut keys = before;
    while let Some(packet) = Packet::of(rest) {
        let Some(packet) = packet else {
            // Long, and of QUIC, but not of a kind that can be read.
            return if matches!(told, Told::No) {
                Told::Opaque
            } else {
                told
            };
        };
        let derived = packet.version.keys(packet.destination);
        let read = [keys, derived].into_iter().flatten().find_map(|keys| {
            let frames = packet.decrypted(&keys)?;
            Crypto(Octets(&frames)).is_sound().then_some((keys, frames))
        });
        match read {
            Some((used, frames)) => {
                for (at, piece) in Crypto(Octets(&frames)) {
                    put(at, piece);
                }
                keys = Some(used);
                told = Told::Initial(used);
            }
            None if matches!(told, Told::No) => told = Told::Opaque,
            None => {}
        }
        rest = packet.behind;
    }
    told
}

/// An Initial packet.
struct Packet<'a> {
    version: Version,
    destination: &'a [u8],
    /// From the first octet to the packet number, which is protected.
    header: &'a [u8],
    /// The packet number and all behind it, as much as was kept.
    protected: &'a [u8],
    /// How long that is when nothing was cut.
    length: usize,
    behind: &'a [u8],
}

/// Whether it is a version of QUIC that there is, or was.
const fn is_version(number: u32) -> bool {
    matches!(number, 1 | 0x6b33_43cf | 0xface_b000..=0xface_b00f | 0xff00_0001..=0xff00_0022)
}

/// Whether it is a version of Google's QUIC, which was before there was a standard: Q043 to T051.
fn is_googles(version: &[u8]) -> bool {
    matches!(version, [b'Q' | b'T', b'0', tens, ones] if tens.is_ascii_digit() && ones.is_ascii_digit())
}

impl<'a> Packet<'a> {
    /// The packet at the beginning of `octets`; `None` when there is none with a long header, `Some(None)` when it is not an Initial one
    /// of a version that can be read.
    fn of(octets: &'a [u8]) -> Option<Option<Self>> {
        let mut rest = Octets(octets);
        let first = rest.u8()?;
        // The version lies behind an identifier of 8 octets, or where it does now.
        let googles = if first & 0xc9 == 0x09 { 9..13 } else { 1..5 };
        if first & 0xc0 != 0x40 && octets.get(googles).is_some_and(is_googles) {
            return Some(None);
        }
        let number = rest.u32()?;
        if first & 0xc0 != 0xc0 || !is_version(number) {
            return None;
        }
        let (destination, source) = (rest.short()?, rest.short()?);
        if destination.len() > 20 || source.len() > 20 {
            return None;
        }
        Some(Self::initial(octets, rest, first, number, destination))
    }

    fn initial(
        octets: &'a [u8],
        mut rest: Octets<'a>,
        first: u8,
        number: u32,
        destination: &'a [u8],
    ) -> Option<Self> {
        let version = Version::of(number).filter(|version| first >> 4 & 3 == version.initial)?;
        let token = variable(&mut rest)?;
        rest.take(usize::try_from(token).ok()?)?;
        let length = usize::try_from(variable(&mut rest)?).ok()?;
        let header = &octets[..octets.len() - rest.0.len()];
        let protected = &rest.0[..rest.0.len().min(length)];
        Some(Self {
            version,
            destination,
            header,
            protected,
            length,
            behind: &rest.0[protected.len()..],
        })
    }

    /// The frames in it, as much as was kept. The tag is not checked: it may have been cut off, and what is not sound is no frame.
    fn decrypted(&self, keys: &Keys) -> Option<Vec<u8>> {
        const TAG: usize = 16;
        let sample = *self.protected.get(4..)?.first_chunk::<16>()?;
        let mut mask = sample.into();
        Aes128::new(&keys.header.into()).encrypt_block(&mut mask);
        let first = self.header.first()? ^ (mask[0] & 0x0f);
        let number_length = usize::from(first & 3) + 1;
        // Reserved bits are zero under the right keys.
        if first & 0x0c != 0 {
            return None;
        }
        let mut nonce = keys.iv;
        for (at, octet) in self.protected[..number_length].iter().enumerate() {
            nonce[12 - number_length + at] ^= octet ^ mask[1 + at];
        }
        let end = self.length.checked_sub(TAG)?.min(self.protected.len());
        let mut frames = self.protected.get(number_length..end)?.to_vec();
        let cipher = Aes128::new(&keys.key.into());
        let mut counter = [0; 16];
        counter[..12].copy_from_slice(&nonce);
        for (at, chunk) in frames.chunks_mut(16).enumerate() {
            // The first block of the counter is the tag's.
            counter[12..].copy_from_slice(&(at as u32 + 2).to_be_bytes());
            let mut block = counter.into();
            cipher.encrypt_block(&mut block);
            for (octet, key) in chunk.iter_mut().zip(block.iter()) {
                *octet ^= key;
            }
        }
        Some(frames)
    }
}

/// A number of 1 to 8 octets (RFC 9000, section 16).
fn variable(rest: &mut Octets<'_>) -> Option<u64> {
    let first = rest.u8()?;
    let more = (1 << (first >> 6)) - 1;
    Some(
        rest.take(more)?
            .iter()
            .fold(u64::from(first & 0x3f), |value, octet| {
                (value << 8) | u64::from(*octet)
            }),
    )
}

/// The CRYPTO frames among frames; ends where they are not sound or cut.
struct Crypto<'a>(Octets<'a>);

impl<'a> Crypto<'a> {
    /// Whether it begins with frames that an Initial packet may have, up to one that carries something.
    fn is_sound(&self) -> bool {
        Self(self.0).next().is_some()
    }

    fn frame(&mut self) -> Option<Option<(usize, &'a [u8])>> {
        let rest = &mut self.0;
        match rest.u8()? {
            // Padding, ping.
            0 | 1 => {}
            kind @ (2 | 3) => {
                for _ in 0..2 {
                    variable(rest)?;
                }
                let ranges = variable(rest)?;
                let counts = if kind == 3 { 3 } else { 0 };
                // Each takes an octet at least, so this ends.
                for _ in 0..ranges.checked_mul(2)?.checked_add(1 + counts)? {
                    variable(rest)?;
                }
            }
            6 => {
                let at = usize::try_from(variable(rest)?).ok()?;
                let length = usize::try_from(variable(rest)?).ok()?;
                // A frame that was cut is still one.
                let piece = rest.take(length.min(rest.0.len()))?;
                return Some(Some((at, piece)));
            }
            0x1c => {
                variable(rest)?;
                variable(rest)?;
                let length = variable(rest)?;
                rest.take(usize::try_from(length).ok()?)?;
            }
            _ => return None,
        }
        Some(None)
    }
}

impl<'a> Iterator for Crypto<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.frame()? {
                return Some(piece);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An Initial packet of a client with CRYPTO frames, filled up to 1,200 octets. The tag is not a real one.
    pub(in super::super) fn datagram(
        version: u32,
        number: u8,
        frames: &[(usize, &[u8])],
    ) -> Vec<u8> {
        let destination = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        let how = Version::of(version).unwrap();
        let keys = how.keys(&destination).unwrap();
        let two = |value: usize| (0x4000 | value as u16).to_be_bytes();
        let mut clear = vec![1]; // A ping.
        for (at, piece) in frames {
            clear.push(6);
            clear.extend(two(*at));
            clear.extend(two(piece.len()));
            clear.extend(*piece);
        }
        clear.resize(clear.len().max(1_150), 0);
        let mut packet = vec![0xc0 | how.initial << 4];
        packet.extend(version.to_be_bytes());
        packet.extend([8]);
        packet.extend(destination);
        packet.extend([0, 0]);
        packet.extend(two(1 + clear.len() + 16));
        let header = packet.len();
        packet.push(number);
        packet.extend(&clear);
        packet.extend([0xee; 16]);
        // Undoing the protection is doing it: the number first, since what is protected is looked at for the mask.
        let mut nonce = keys.iv;
        nonce[11] ^= number;
        let cipher = Aes128::new(&keys.key.into());
        for (at, chunk) in packet[header + 1..header + 1 + clear.len()]
            .chunks_mut(16)
            .enumerate()
        {
            let mut block = [0; 16];
            block[..12].copy_from_slice(&nonce);
            block[15] = (at + 2) as u8;
            let mut block = block.into();
            cipher.encrypt_block(&mut block);
            chunk
                .iter_mut()
                .zip(block.iter())
                .for_each(|(octet, key)| *octet ^= key);
        }
        let mut mask = <[u8; 16]>::try_from(&packet[header + 4..header + 20])
            .unwrap()
            .into();
        Aes128::new(&keys.header.into()).encrypt_block(&mut mask);
        packet[0] ^= mask[0] & 0x0f;
        packet[header] ^= mask[1];
        packet
    }

    fn hex(octets: &[u8]) -> String {
        octets.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    #[test]
    fn keys_are_those_of_the_standards() {
        let destination = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        for (version, key, iv, header) in [
            // RFC 9001, appendix A.1; RFC 9369, appendix A.1.
            (
                1,
                "1f369613dd76d5467730efcbe3b1a22d",
                "fa044b2f42a3fd3b46fb255c",
                "9f50449e04a0e810283a1e9933adedd2",
            ),
            (
                0x6b33_43cf,
                "8b1a0bc121284290a29e0971b5cd045d",
                "91f73e2351d8fa91660e909f",
                "45b95e15235d6f45a6b19cbcb0294ba9",
            ),
        ] {
            let keys = Version::of(version).unwrap().keys(&destination).unwrap();
            assert_eq!(hex(&keys.key), key);
            assert_eq!(hex(&keys.iv), iv);
            assert_eq!(hex(&keys.header), header);
        }
    }

    #[test]
    fn frames_end_where_they_are_not_sound() {
        let read = |octets| Crypto(Octets(octets)).collect::<Vec<_>>();
        // Padding, an acknowledgment with counts, a piece, another that was cut.
        let frames = [0, 0, 3, 9, 1, 0, 2, 1, 2, 3, 6, 0, 2, 7, 8, 6, 2, 9, 5];
        assert_eq!(read(&frames), [(0, &[7, 8][..]), (2, &[5])]);
        // More ranges than there are octets; a frame that an Initial packet cannot have.
        assert!(
            read(&[
                2, 9, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 6, 0, 0
            ])
            .is_empty()
        );
        assert!(read(&[8, 6, 0, 1, 1]).is_empty());
    }
}
