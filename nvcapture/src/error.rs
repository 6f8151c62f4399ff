//! What can go wrong while reading frames.

/// Why frames could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("read the capture")]
    Io(#[from] std::io::Error),
}
