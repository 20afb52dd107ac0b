//! The mount table of the calling thread's mount namespace.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt, path::PathBuf};

/// Where it is read. A thread may have another namespace than its process.
pub(crate) const TABLE: &str = "/proc/thread-self/mountinfo";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mount {
    /// Which directory of the file system it shows.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) point: PathBuf,
    /// True where the mount or its file system is read-only.
    pub(crate) read_only: bool,
    /// File system type.
    pub(crate) kind: Vec<u8>,
    /// Free text.
    pub(crate) source: Vec<u8>,
}

/// All mounts, in the order of mounting: the later of two on one directory hides the earlier.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read(TABLE)?))
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER_OPTIONS` (Documentation/filesystems/proc.rst 3.5).
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (root, point, options) = (fields.nth(3)?, fields.next()?, fields.next()?);
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source, super_options) = (after.next()?, after.next()?, after.next().unwrap_or_default());
    let read_only = |options: &[u8]| options.split(|&byte| byte == b',').any(|option| option == b"ro");
    Some(Mount {
        root: OsString::from_vec(unescape(root)).into(),
        point: OsString::from_vec(unescape(point)).into(),
        read_only: read_only(options) || read_only(super_options),
        kind: unescape(kind),
        source: unescape(source),
    })
}

/// Space, tab, newline, backslash and `#` stand in the table as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        match (byte, behind) {
            (b'\\', [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', after @ ..]) => {
                plain.push((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'));
                rest = after;
            }
            _ => plain.push(byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_unescaped_and_need_not_be_utf8() {
        let mounts =
            parse(b"5 1 0:2 /a\\134b /mnt/with\\040space\\011\xff\\9 ro shared:1 - cgroup2 any\\040thing rw\nshort\n");
        let expected = Mount {
            root: "/a\\b".into(),
            point: OsString::from_vec(b"/mnt/with space\t\xff\\9".to_vec()).into(),
            read_only: true,
            kind: b"cgroup2".to_vec(),
            source: b"any thing".to_vec(),
        };
        assert_eq!(mounts, [expected]);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(table: Vec<u8>) {
            prop_assert!(unescape(&table).len() <= table.len());
            prop_assert!(parse(&table).len() <= table.len());
        }
    }
}
