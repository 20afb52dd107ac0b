//! Name patterns: `x.example`, `*.x.example`, `.x.example`. Kept and compared label by label, as DNS has them on the wire,
//! never as strings: `evilgithub.com` ends in `github.com`, and is not below it.

use std::{fmt, str::FromStr};

/// Longest label (RFC 1035, 2.3.4).
pub(super) const LABEL_MAX: usize = 63;
/// Longest name as text: 255 bytes on the wire (RFC 1035, 2.3.4) less the root and one length byte.
const NAME_MAX: usize = 253;

/// Which names a pattern speaks of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reach {
    /// `x.example`: that name.
    Exact,
    /// `*.x.example`: every name below it, at any depth, not itself.
    Below,
    /// `.x.example`: both.
    Both,
}

impl Reach {
    /// True where the name itself is meant.
    pub const fn apex(self) -> bool {
        matches!(self, Self::Exact | Self::Both)
    }

    /// True where the names below it are meant.
    pub const fn below(self) -> bool {
        matches!(self, Self::Below | Self::Both)
    }
}

/// A pattern that matches names: lower-case ASCII labels, at most 253 characters in all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamePattern {
    base: String,
    reach: Reach,
}

/// Why a text is no name pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// `*` by itself.
    #[error("{text:?} would open every name; list the domains, e.g. \"*.example.com\", or use --observe to find them")]
    Everything {
        /// As written.
        text: String,
    },
    /// A star anywhere but as the first label.
    #[error("{text:?} has a * inside: a * stands alone as the first label, e.g. \"*.{rest}\"")]
    InnerStar {
        /// As written.
        text: String,
        /// What could stand behind `*.`.
        rest: String,
    },
    /// A wildcard over one label.
    #[error("{text:?} would open a whole top-level domain; name the registrable domain, e.g. \"*.example.{base}\"")]
    TopLevel {
        /// As written.
        text: String,
        /// The top-level domain.
        base: String,
    },
    /// A wildcard over a suffix under which anybody can register (ICANN section of the public suffix list).
    #[error("{text:?} would open a whole public suffix; name the registrable domain, e.g. \"*.example.{base}\"")]
    PublicSuffix {
        /// As written.
        text: String,
        /// The suffix.
        base: String,
    },
    /// Two dots in a row, or nothing at all.
    #[error("{text:?} has an empty label: write a name like \"example.com\", \"*.example.com\" or \".example.com\"")]
    EmptyLabel {
        /// As written.
        text: String,
    },
    /// A label over 63 bytes.
    #[error("{text:?} has a label of {length} bytes: DNS allows {LABEL_MAX}")]
    LabelTooLong {
        /// As written.
        text: String,
        /// Bytes in that label.
        length: usize,
    },
    /// A name over 253 characters.
    #[error("{text:?} is {length} characters long: DNS allows {NAME_MAX}")]
    NameTooLong {
        /// As written.
        text: String,
        /// Characters in the name.
        length: usize,
    },
    /// Something that is no letter, digit, hyphen or underscore.
    #[error("{text:?} contains {found:?}: names are letters, digits, hyphens and underscores between dots")]
    Character {
        /// As written.
        text: String,
        /// The first such character.
        found: char,
    },
    /// Not convertible to the form that DNS carries.
    #[error("{text:?} is not a valid internationalised name (UTS 46); write its xn-- form")]
    Idna {
        /// As written.
        text: String,
    },
    /// The last label is a number, as in `1.2.3` or `0x7f.1`: resolvers take those for IPv4 addresses.
    #[error("{text:?} looks like an IPv4 address but is none: write four numbers from 0 to 255 without leading zeros")]
    Numeric {
        /// As written.
        text: String,
    },
    /// Answered with loopback, without DNS (RFC 6761, 6.3).
    #[error("{text:?} is loopback: allow.loopback says what is open there, e.g. loopback = [8080]")]
    Localhost {
        /// As written.
        text: String,
    },
}

impl NamePattern {
    /// The name behind `*.` or `.`: lower-case ASCII, no trailing dot.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Which names are meant.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Labels of the base, leftmost first.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.base.split('.')
    }

    /// True where the name is meant. Labels as on the wire, leftmost first, any case.
    pub fn matches(&self, labels: &[&[u8]]) -> bool {
        let own = self.labels().count();
        let Some(above) = labels.len().checked_sub(own) else { return false };
        let (_, tail) = labels.split_at(above);
        let fits = self.labels().zip(tail).all(|(own, label)| label.eq_ignore_ascii_case(own.as_bytes()));
        fits && if above == 0 { self.reach.apex() } else { self.reach.below() }
    }

    /// The suffix of the public suffix list's private section that this wildcard spans, e.g. `github.io`.
    pub fn private_suffix(&self) -> Option<&str> {
        (self.reach.below() && suffix_kind(&self.base) == Some(psl::Type::Private)).then_some(self.base.as_str())
    }
}

/// The section of the public suffix list that has the whole name as an entry.
fn suffix_kind(name: &str) -> Option<psl::Type> {
    let suffix = psl::suffix(name.as_bytes())?;
    if suffix.as_bytes() == name.as_bytes() { suffix.typ() } else { None }
}

impl FromStr for NamePattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let owned = || text.to_owned();
        if matches!(text, "*" | "*." | "." | ".*") {
            return Err(NameError::Everything { text: owned() });
        }
        let (reach, rest) = if let Some(rest) = text.strip_prefix("*.") {
            (Reach::Below, rest)
        } else if let Some(rest) = text.strip_prefix('.') {
            (Reach::Both, rest)
        } else {
            (Reach::Exact, text)
        };
        if rest.contains('*') {
            let rest = rest.rsplit('*').next().unwrap_or_default().trim_start_matches(|c| c != '.').trim_matches('.');
            let rest = if rest.is_empty() { "example.com" } else { rest };
            return Err(NameError::InnerStar { text: owned(), rest: rest.to_owned() });
        }
        let base = wire_form(text, rest)?;
        if base == "localhost" || base.ends_with(".localhost") {
            return Err(NameError::Localhost { text: owned() });
        }
        if reach.below() {
            if !base.contains('.') {
                return Err(NameError::TopLevel { text: owned(), base });
            }
            if suffix_kind(&base) == Some(psl::Type::Icann) {
                return Err(NameError::PublicSuffix { text: owned(), base });
            }
        }
        Ok(Self { base, reach })
    }
}

/// Lower-case ASCII labels without the trailing dot. `text` is the whole pattern, for messages.
fn wire_form(text: &str, name: &str) -> Result<String, NameError> {
    let owned = || text.to_owned();
    let name = if name.is_ascii() {
        name.to_ascii_lowercase()
    } else {
        // The ASCII part is checked below: this crate's own lists refuse the underscore of service names.
        idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::EMPTY)
            .map_err(|_| NameError::Idna { text: owned() })?
            .into_owned()
    };
    let name = name.strip_suffix('.').unwrap_or(&name);
    for label in name.split('.') {
        if label.is_empty() {
            return Err(NameError::EmptyLabel { text: owned() });
        }
        let odd = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if let Some(found) = label.chars().find(odd) {
            return Err(NameError::Character { text: owned(), found });
        }
        if label.len() > LABEL_MAX {
            return Err(NameError::LabelTooLong { text: owned(), length: label.len() });
        }
    }
    if name.len() > NAME_MAX {
        return Err(NameError::NameTooLong { text: owned(), length: name.len() });
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    if hex || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NameError::Numeric { text: owned() });
    }
    Ok(name.to_owned())
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reach {
            Reach::Exact => "",
            Reach::Below => "*.",
            Reach::Both => ".",
        })?;
        f.write_str(&self.base)
    }
}
