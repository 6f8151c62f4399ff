//! Programs that use one crate each; see `examples/*.rs` and run them with `cargo run -p nv-examples --example NAME`.
