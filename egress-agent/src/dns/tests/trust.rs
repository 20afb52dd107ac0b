//! Upstreams that are slow, wrong, forged or dead.
