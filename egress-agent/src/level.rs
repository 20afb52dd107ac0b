//! What is promised about a sandbox, and to whom: SECURITY.md has the whole table.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A threat level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Level {
    /// Unprivileged code in its cgroup.
    L1,
    /// Root in its own network namespace.
    L2,
    /// A guest kernel or a user-space stack.
    L3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
        })
    }
}

/// A level that does not exist.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no level {0:?}; levels are L1, L2 and L3")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        match text {
            "L1" => Ok(Self::L1),
            "L2" => Ok(Self::L2),
            "L3" => Ok(Self::L3),
            _ => Err(UnknownLevel(text.to_owned())),
        }
    }
}

/// The level that was reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reached {
    /// `None`: no promise holds.
    pub level: Option<Level>,
    /// In words: "L1, minus same-user processes".
    pub text: String,
    /// What the next level needs.
    pub missing: Vec<String>,
}

impl Reached {
    /// No promise holds, for this reason before all others.
    #[must_use]
    pub fn void(mut self, why: String) -> Self {
        self.missing.insert(0, why);
        Self { level: None, text: "none".to_owned(), missing: self.missing }
    }

    /// The promise holds but for this.
    #[must_use]
    pub fn minus(mut self, exception: &str, why: String) -> Self {
        self.except(exception);
        self.missing.push(why);
        self
    }

    /// The promise holds but for what another excepts.
    #[must_use]
    pub(crate) fn minus_those_of(mut self, other: &Self) -> Self {
        other.text.split(", minus ").skip(1).for_each(|exception| self.except(exception));
        self
    }

    fn except(&mut self, exception: &str) {
        if self.level.is_some() && !self.text.split(", minus ").any(|known| known == exception) {
            self.text = format!("{}, minus {exception}", self.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_add_up_once_each_and_a_void_promise_has_none() {
        let full = |level: Option<Level>, text: &str| Reached { level, text: text.to_owned(), missing: vec![] };
        let first = full(Some(Level::L2), "L2").minus("a", "why".to_owned());
        assert_eq!((first.text.as_str(), first.missing.len()), ("L2, minus a", 1));
        let second = full(Some(Level::L1), "L1, minus b").minus_those_of(&first).minus_those_of(&first);
        assert_eq!(second.text, "L1, minus b, minus a");
        assert_eq!(full(None, "none").minus_those_of(&first).text, "none");
    }
}
