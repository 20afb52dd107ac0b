//! Domain names as the wire carries them: length-prefixed labels, never text that has to be read back.

use smallvec::SmallVec;
use std::{
    fmt::{self, Write},
    hash::{Hash, Hasher},
    ops::Deref,
    str::FromStr,
    sync::Arc,
};
use thiserror::Error;

/// Octets of the longest name, the root's zero included (RFC 1035, 2.3.4).
pub(super) const MAX_WIRE: usize = 255;
const MAX_LABEL: usize = 63;
/// Characters that a printed name is cut at: the longest name without escapes.
const MAX_TEXT: usize = 253;

/// A domain name in wire form, ASCII letters in lower case, other octets untouched. Never compressed.
///
/// It prints as RFC 1035, 5.1 has it, without the last dot: `[a-z0-9_-]` verbatim, every other octet of a label as `\DDD`
/// in decimal, cut at 253 characters. So it is safe in a log, and a dot inside a label does not look like a separator.
///
/// Cheap to clone: a question's name is wanted by the cache, the permits and the events.
#[derive(Clone)]
pub struct Name {
    wire: Arc<[u8]>,
}

/// Why a text is no domain name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NameError {
    /// A label of nothing, as in `a..b`.
    #[error("a label is empty: remove the extra dot")]
    EmptyLabel,
    /// RFC 1035, 2.3.4.
    #[error("a label is longer than 63 octets")]
    LongLabel,
    /// RFC 1035, 2.3.4.
    #[error("the name is longer than 255 octets in wire form")]
    LongName,
    /// A backslash that three decimal digits up to 255 do not follow.
    #[error("a backslash must be followed by three decimal digits, 000 to 255")]
    Escape,
}

impl Name {
    /// The root, which prints as `.`.
    pub fn root() -> Self {
        Self { wire: Arc::new([0]) }
    }

    /// From labels, leftmost first.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut wire = Wire::default();
        for label in labels {
            wire.push(label)?;
        }
        Ok(wire.closed())
    }

    /// From the uncompressed name that starts at `wire` and ends with the root.
    pub(super) fn from_wire(wire: &[u8]) -> Option<Self> {
        let mut wire: Arc<[u8]> = Arc::from(&wire[..wire_len(wire)?]);
        // A length octet is at most 63, below every letter.
        Arc::make_mut(&mut wire).make_ascii_lowercase();
        Some(Self { wire })
    }

    /// The wire form, the root's zero included.
    pub fn as_wire(&self) -> &[u8] {
        &self.wire
    }

    /// The labels, leftmost first; none for the root.
    pub fn labels(&self) -> Labels<'_> {
        Labels::of(self.as_wire())
    }
}

/// A name that is being put together: its labels, without the root.
#[derive(Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn push(&mut self, label: &[u8]) -> Result<(), NameError> {
        if label.is_empty() {
            return Err(NameError::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(NameError::LongLabel);
        }
        if self.0.len() + 1 + label.len() + 1 > MAX_WIRE {
            return Err(NameError::LongName);
        }
        self.0.push(label.len() as u8);
        self.0.extend(label.iter().map(u8::to_ascii_lowercase));
        Ok(())
    }

    fn closed(mut self) -> Name {
        self.0.push(0);
        Name { wire: self.0.into() }
    }
}

/// Octets of the uncompressed name at the start of `wire`; `None` for a pointer, an extended label type, a name that is
/// too long or cut short.
pub(super) fn wire_len(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*wire.get(at)?);
        if length > MAX_LABEL {
            return None;
        }
        at += 1 + length;
        if at > MAX_WIRE || at > wire.len() {
            return None;
        }
        if length == 0 {
            return Some(at);
        }
    }
}

/// The labels of a name, leftmost first, borrowed. Hardly any name has more than there is room for without an allocation.
pub struct Labels<'a>(SmallVec<[&'a [u8]; 8]>);

impl<'a> Labels<'a> {
    /// Of a valid uncompressed name.
    pub(super) fn of(wire: &'a [u8]) -> Self {
        let mut labels = SmallVec::new();
        let mut rest = wire;
        while let Some((&length, tail)) = rest.split_first() {
            let Some((label, after)) = tail.split_at_checked(usize::from(length)) else { break };
            if label.is_empty() {
                break;
            }
            labels.push(label);
            rest = after;
        }
        Self(labels)
    }

    /// True where the name is `suffix` or below it, ASCII case ignored.
    pub(super) fn under(&self, suffix: &[&str]) -> bool {
        self.len() >= suffix.len()
            && self[self.len() - suffix.len()..]
                .iter()
                .zip(suffix)
                .all(|(label, want)| label.eq_ignore_ascii_case(want.as_bytes()))
    }
}

impl<'a> Deref for Labels<'a> {
    type Target = [&'a [u8]];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wire.len() == 1 {
            return f.write_str(".");
        }
        let mut text = String::with_capacity(MAX_TEXT);
        'cut: for (index, label) in self.labels().iter().enumerate() {
            let dot = (index > 0).then_some(None);
            for part in dot.into_iter().chain(label.iter().copied().map(Some)) {
                let verbatim = match part {
                    None => Some('.'),
                    Some(octet @ (b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) => Some(char::from(octet)),
                    Some(_) => None,
                };
                if text.len() + if verbatim.is_some() { 1 } else { 4 } > MAX_TEXT {
                    break 'cut;
                }
                match (verbatim, part) {
                    (Some(character), _) => text.push(character),
                    (None, octet) => write!(text, "\\{:03}", octet.unwrap_or_default())?,
                }
            }
        }
        f.pad(&text)
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Reads what [`Name`] prints; one dot at the end is allowed.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Ok(Self::root());
        }
        let mut wire = Wire::default();
        let mut label = Vec::with_capacity(MAX_LABEL);
        let mut octets = text.bytes();
        while let Some(octet) = octets.next() {
            match octet {
                b'.' => {
                    wire.push(&label)?;
                    label.clear();
                }
                b'\\' => label.push(escaped(&mut octets).ok_or(NameError::Escape)?),
                _ => label.push(octet),
            }
        }
        wire.push(&label)?;
        Ok(wire.closed())
    }
}

fn escaped(octets: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let mut value = 0_u16;
    for _ in 0..3 {
        let digit = octets.next()?.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value = value * 10 + u16::from(digit);
    }
    u8::try_from(value).ok()
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_wire() == other.as_wire()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_wire().hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn b09_case_and_the_last_dot_do_not_count() {
        assert_eq!(name("API.Example.TEST."), name("api.example.test"));
        assert_ne!(name("api.example.test"), name("api.example.tes"));
        assert_eq!(name(".").to_string(), ".");
        assert_eq!(name(""), Name::root());
    }

    #[test]
    fn b08_a_dot_inside_a_label_is_not_a_separator() {
        let name = Name::from_labels([b"api.github".as_slice(), b"com"]).unwrap();
        assert_eq!(name.to_string(), r"api\046github.com");
        assert_eq!(name.labels().len(), 2);
        assert_ne!(name, self::name("api.github.com"));
    }

    #[test]
    fn b10_octets_outside_the_host_alphabet_print_in_decimal() {
        let name = Name::from_labels([b"\0\n\x1b[31m".as_slice(), b"\xc3\xbc::error::", b"test"]).unwrap();
        assert_eq!(name.to_string(), r"\000\010\027\09131m.\195\188\058\058error\058\058.test");
    }

    #[test]
    fn f14_a_printed_name_is_one_short_line() {
        let label = [b'\n'; 63];
        let long = Name::from_labels([&label[..], &label, &label, &[b'\n'; 61]]).unwrap();
        let text = long.to_string();
        assert!(text.len() <= 253 && text.starts_with(r"\010\010"), "{text}");
        assert!(text.len() > 248, "cut too early: {}", text.len());
    }

    #[test]
    fn lengths_are_held_at_their_limits() {
        assert_eq!(name(&"a".repeat(63)).labels().len(), 1);
        assert_eq!("a".repeat(64).parse::<Name>(), Err(NameError::LongLabel));
        assert_eq!(name(&["a"; 127].join(".")).as_wire().len(), 255);
        assert_eq!(["a"; 128].join(".").parse::<Name>(), Err(NameError::LongName));
        assert_eq!("a..b".parse::<Name>(), Err(NameError::EmptyLabel));
        for text in [r"a\2", r"a\25x", r"a\256", r"a\"] {
            assert_eq!(text.parse::<Name>(), Err(NameError::Escape), "{text}");
        }
        assert_eq!(wire_len(&[0xc0, 0x0c]), None);
        assert_eq!(wire_len(b"\x03abc"), None);
    }

    proptest! {
        #[test]
        fn a_short_name_survives_print_and_parse(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..3)) {
            let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
            prop_assert_eq!(&name.to_string().parse::<Name>().unwrap(), &name);
            prop_assert_eq!(Name::from_wire(name.as_wire()), Some(name));
        }
    }
}
