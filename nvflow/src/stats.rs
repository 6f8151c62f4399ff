//! What a meter has done.

/// Totals of a [`crate::Meter`]; they only grow, but for [`connections`](Self::connections).
///
/// Every frame is in exactly one of four: `frames = metered + not_ip + unparsed + refused`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterStats {
    /// Frames read.
    pub frames: u64,
    /// Frames counted to a connection.
    pub metered: u64,
    /// Frames without an IP packet: ARP, LLDP and the like.
    pub not_ip: u64,
    /// Frames that are malformed, cut off before the addresses, or of a link type that is not read.
    pub unparsed: u64,
    /// Frames of new connections for which the full table had no room.
    pub refused: u64,
    /// Packets counted to connections: those of the wire, of which a super-frame stands for many. `metered`, and more where there are any.
    pub packets: u64,
    /// Of the frames metered: super-frames.
    pub super_frames: u64,
    /// Of the super-frames: those whose packets were told by the MTU, as the source did not know.
    pub super_frames_by_mtu: u64,
    /// Of the frames metered: later fragments, counted to their first fragment's connection.
    pub fragments: u64,
    /// Of the frames metered: later fragments whose first was not seen, counted by pair of addresses.
    pub fragments_without_first: u64,
    /// Of the frames metered: those taken out of a tunnel.
    pub decapsulated: u64,
    /// Connections opened in the table.
    pub opened: u64,
    /// Connections in the table now.
    pub connections: u64,
    /// The most connections there ever were at the same time; of several meters together the sum of each one's own.
    pub high_water: u64,
    /// Connections given up for new ones: those that had ended already.
    pub evicted_ended: u64,
    /// Connections given up for new ones: half-open or of a single packet.
    pub evicted_embryonic: u64,
    /// Connections given up for new ones: others, the longest idle.
    pub evicted_idle: u64,
    /// Connections of which it was found out what they speak.
    pub identified: u64,
    /// Times that names were not kept since the memory for them was used up.
    pub names_refused: u64,
    /// Sides of connections that were judged too soon, since others needed the place of their pieces.
    pub pieces_given_up: u64,
    /// Records made.
    pub records: u64,
    /// Records made after the sink had failed or asked for no more; they are lost.
    pub undelivered: u64,
}

impl MeterStats {
    /// Whether every frame is accounted for.
    pub const fn is_balanced(&self) -> bool {
        self.frames == self.metered + self.not_ip + self.unparsed + self.refused
    }

    /// Adds those of another meter, of another thread; the high waters too, which need not have been at the same time.
    pub fn merge(&mut self, other: &Self) {
        // Field by field without `..`, so that none can be forgotten.
        let Self {
            frames,
            metered,
            not_ip,
            unparsed,
            refused,
            packets,
            super_frames,
            super_frames_by_mtu,
            fragments,
            fragments_without_first,
            decapsulated,
            opened,
            connections,
            high_water,
            evicted_ended,
            evicted_embryonic,
            evicted_idle,
            identified,
            names_refused,
            pieces_given_up,
            records,
            undelivered,
        } = other;
        for (mine, more) in [
            (&mut self.frames, frames),
            (&mut self.metered, metered),
            (&mut self.not_ip, not_ip),
            (&mut self.unparsed, unparsed),
            (&mut self.refused, refused),
            (&mut self.packets, packets),
            (&mut self.super_frames, super_frames),
            (&mut self.super_frames_by_mtu, super_frames_by_mtu),
            (&mut self.fragments, fragments),
            (&mut self.fragments_without_first, fragments_without_first),
            (&mut self.decapsulated, decapsulated),
            (&mut self.opened, opened),
            (&mut self.connections, connections),
            (&mut self.high_water, high_water),
            (&mut self.evicted_ended, evicted_ended),
            (&mut self.evicted_embryonic, evicted_embryonic),
            (&mut self.evicted_idle, evicted_idle),
            (&mut self.identified, identified),
            (&mut self.names_refused, names_refused),
            (&mut self.pieces_given_up, pieces_given_up),
            (&mut self.records, records),
            (&mut self.undelivered, undelivered),
        ] {
            *mine += more;
        }
    }
}
