//! Bytes that the sandbox or the network chose, made harmless for whoever reads the log.
//!
//! Three readers can be fooled: a terminal (escape sequences), a JSON reader (broken lines), and a CI runner that obeys
//! workflow commands in a job's output (`::error::…` at the start of a line, `##[error]…` anywhere, `%0A` for a new line).

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter};
use std::io::{self, Write};

/// Longest printed name, in characters: what RFC 1035, 2.3.4 leaves for text.
pub const NAME_MAX: usize = 253;

/// A DNS name as it may be printed: `[a-z0-9_.-]` as they are, upper case lowered, anything else as `\DDD` (RFC 1035, 5.1).
/// A name that went through here before comes out unchanged. Cut at [`NAME_MAX`], never inside an escape.
pub fn name(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(bytes.len().min(NAME_MAX));
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let (piece, read) = match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' => (char::from(byte).to_string(), 1),
            b'A'..=b'Z' => (char::from(byte.to_ascii_lowercase()).to_string(), 1),
            b'\\' => match bytes.get(index + 1..index + 4).and_then(byte_of) {
                Some(value) => (decimal(value), 4),
                None => (decimal(byte), 1),
            },
            _ => (decimal(byte), 1),
        };
        if out.len() + piece.len() > NAME_MAX {
            break;
        }
        index += read;
        out.push_str(&piece);
    }
    out
}

/// The byte that three decimal digits spell.
fn byte_of(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    if digits.iter().all(u8::is_ascii_digit) { text.parse().ok() } else { None }
}

fn decimal(byte: u8) -> String {
    format!("\\{byte:03}")
}

/// Text for one line of a terminal or a job log: printable ASCII stays, everything that could move a cursor, end the line or
/// be taken for a workflow command becomes `\DDD`.
pub fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        let command = (byte == b':' && out.ends_with(':')) || (byte == b'[' && out.ends_with("##"));
        if command || !matches!(byte, b' '..=b'~') || matches!(byte, b'%' | b'\\') {
            out.push_str(&decimal(byte));
        } else {
            out.push(char::from(byte));
        }
    }
    out
}

/// A message of egressd's own that may quote others, as one line: it keeps every printable character, and escapes what would
/// end the line, steer a terminal, or pass for `##[command]`.
pub fn line(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for symbol in raw.chars() {
        let command = symbol == '[' && out.ends_with("##");
        if command {
            out.push_str("\\u{5b}");
        } else if symbol.is_control() || is_format(symbol) {
            out.extend(symbol.escape_default());
        } else {
            out.push(symbol);
        }
    }
    out
}

/// Characters that change how their neighbours are shown: bidi controls, line separators, byte order mark.
const fn is_format(symbol: char) -> bool {
    matches!(symbol, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// One line of JSON in ASCII alone, without the newline. It is ordinary JSON: a reader gets back what was put in.
pub fn json_line<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, AsciiLine))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// serde_json escapes what JSON demands; C1 controls, DEL, bidi marks and `##[` pass it, and do not pass here.
struct AsciiLine;

impl Formatter for AsciiLine {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut hashes = 0_usize;
        for symbol in fragment.chars() {
            let command = symbol == '[' && hashes >= 2;
            hashes = if symbol == '#' { hashes + 1 } else { 0 };
            if command || !matches!(symbol, ' '..='~') {
                let mut units = [0_u16; 2];
                for unit in symbol.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            } else {
                writer.write_all(symbol.encode_utf8(&mut [0; 4]).as_bytes())?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOSTILE: &str = "a\n::error::owned\u{1b}[31m%0A##[group]\u{9b}31m.test";

    #[test]
    fn plain_names_stay_and_hostile_ones_are_spelled_out() {
        assert_eq!(name("api.foo_1-x.test"), "api.foo_1-x.test");
        assert_eq!(name("API.Foo.test"), "api.foo.test");
        assert_eq!(name("a\nb.test"), "a\\010b.test");
        assert_eq!(name("x\\y.test"), "x\\092y.test");
        assert_eq!(name("x\\300.test"), "x\\092300.test");
        assert!(name(HOSTILE).bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-\\".contains(&b)));
    }

    #[test]
    fn a_long_name_is_cut_between_escapes() {
        let cut = name(&"\n".repeat(300));
        assert_eq!(cut.len(), 252);
        assert!(cut.ends_with("\\010"));
        assert_eq!(name(&"a".repeat(300)).len(), NAME_MAX);
    }

    #[test]
    fn text_hides_workflow_commands_and_keeps_the_rest() {
        assert_eq!(text("cargo build (x86)"), "cargo build (x86)");
        assert_eq!(text("a:b"), "a:b");
        assert_eq!(text("::error::x"), ":\\058error:\\058x");
        assert_eq!(text("##[group]"), "##\\091group]");
        assert_eq!(text("50%0A"), "50\\0370A");
        assert_eq!(text("\u{1b}[31m"), "\\027[31m");
        assert!(!text(HOSTILE).contains("::"));
    }

    #[test]
    fn a_message_keeps_its_text_and_its_line() {
        assert_eq!(line("[::1]:53 ünïcode 100%"), "[::1]:53 ünïcode 100%");
        assert_eq!(line("x\n::error::y"), "x\\n::error::y");
        assert_eq!(line("\u{1b}[2J##[error]\u{202e}"), "\\u{1b}[2J##\\u{5b}error]\\u{202e}");
    }

    #[test]
    fn a_json_line_is_one_ascii_line_that_reads_back() {
        let line = json_line(&HOSTILE).unwrap();
        assert!(line.is_ascii() && !line.contains(['\n', '\u{1b}']) && !line.contains("##["));
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), HOSTILE);
        assert_eq!(json_line("2001:db8::1").unwrap(), "\"2001:db8::1\"");
    }

    proptest! {
        #[test]
        fn printing_a_name_twice_changes_nothing(raw in "\\PC{0,80}") {
            let once = name(&raw);
            prop_assert_eq!(name(&once), once);
        }

        #[test]
        fn any_text_survives_json(raw: String) {
            let line = json_line(&raw).unwrap();
            prop_assert!(line.bytes().all(|b| matches!(b, b' '..=b'~')));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), raw);
        }
    }
}
