//! Why a meter cannot be made.

/// What can go wrong in nvflow: only its making.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The table cannot hold so many connections.
    #[error("max_connections is {connections}: must be from 1 to {most}")]
    Capacity {
        /// How many were asked for.
        connections: usize,
        /// The most there can be.
        most: usize,
    },
    /// There is not enough memory for the table.
    #[error("no memory for {connections} connections: {octets} octets are not to be had")]
    Memory {
        /// How many were asked for.
        connections: usize,
        /// What could not be had for them.
        octets: usize,
    },
}
