//! What policies are merged from: files and flags.

use super::{PolicyError, PreResolve};
use std::path::Path;

/// The flags that add to a policy, as typed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// `--allow DEST`
    pub allow: Vec<String>,
    /// `--deny DEST`
    pub deny: Vec<String>,
    /// `--proxy ADDR:PORT`
    pub proxy: Vec<String>,
    /// `--gateway ADDR:PORTS`
    pub gateway: Vec<String>,
    /// `--dns SERVER`
    pub dns: Vec<String>,
    /// `--observe`, which beats a file's mode.
    pub observe: bool,
    /// `--pre-resolve`, which beats a file's value.
    pub pre_resolve: Option<PreResolve>,
    /// `--rate`, which beats a file's `bandwidth.egress`.
    pub rate: Option<String>,
}

/// One of the things that a policy is merged from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// TOML text.
    Toml {
        /// For positions: `ci.toml:7:13`.
        name: String,
        /// The text.
        text: String,
    },
    /// JSON text of the same shape.
    Json {
        /// For positions.
        name: String,
        /// The text.
        text: String,
    },
    /// Flags.
    Flags(Flags),
}

impl Source {
    /// Reads a file: JSON where its name ends in `.json`, TOML otherwise.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, PolicyError> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        let name = path.display().to_string();
        let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        Ok(if json { Self::Json { name, text } } else { Self::Toml { name, text } })
    }
}
