//! Where fields of the running kernel's structures lie, from its BTF (Documentation/bpf/btf.rst). aya knows no offsets: it
//! relocates what clang recorded, and rustc records nothing.

/// Kinds of types, as `include/uapi/linux/btf.h` numbers them.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;
/// Typedef, volatile, const, restrict, type tag.
const ALIASES: [u32; 5] = [8, 9, 10, 11, 18];
/// Of `struct btf_type`.
const TYPE: usize = 12;
/// Of `struct btf_member`.
const MEMBER: usize = 12;

/// The types of a kernel.
pub(super) struct Types<'b> {
    bytes: &'b [u8],
    names: &'b [u8],
    /// Where each type begins; that of number 0, `void`, does not.
    starts: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Bits of a member's offset that say where it lies; the others say how many bits it has.
    offset_mask: u32,
    members: usize,
    leads_to: u32,
    behind: usize,
}

impl<'b> Types<'b> {
    /// None where the bytes are no BTF.
    pub(super) fn read(btf: &'b [u8]) -> Option<Self> {
        // struct btf_header: magic and version, then lengths and offsets of types and names, from its end.
        let field = |at| word(btf, at).and_then(|word| usize::try_from(word).ok());
        let (header, types, types_len, names, names_len) = (field(4)?, field(8)?, field(12)?, field(16)?, field(20)?);
        let part = |from: usize, length| btf.get(header.checked_add(from)?..)?.get(..length);
        let mut read = Self { bytes: part(types, types_len)?, names: part(names, names_len)?, starts: vec![0] };
        let mut at = 0;
        while at < read.bytes.len() {
            read.starts.push(at);
            at = read.at(at)?.behind;
        }
        Some(read)
    }

    /// Octets from the beginning of a structure to a member, by its path through structures within.
    pub(super) fn offset_of(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let (_, mut inside) = self.find(STRUCT, structure)?;
        let mut bits = 0;
        for name in path {
            let (offset, kind) = self.member(inside, name)?;
            bits += offset;
            inside = kind;
        }
        Some(bits / 8)
    }

    /// The number of a function of the kernel's.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name).map(|(number, _)| number)
    }

    fn find(&self, kind: u32, name: &str) -> Option<(u32, Type)> {
        let mut all = (0..).zip(&self.starts).skip(1).filter_map(|(number, start)| Some((number, self.at(*start)?)));
        all.find(|(_, found)| found.kind == kind && self.is_named(found.name, name))
    }

    /// Bits to a member, and its type; members of nameless structures count as the outer one's.
    fn member(&self, inside: Type, wanted: &str) -> Option<(u32, Type)> {
        let first = inside.behind - inside.members * MEMBER;
        for at in (0..inside.members).map(|index| first + index * MEMBER) {
            let (name, kind, offset) = (self.word(at)?, self.by_number(self.word(at + 4)?), self.word(at + 8)?);
            let offset = offset & inside.offset_mask;
            if self.is_named(name, wanted) {
                // A pointer to nothing is a member as well.
                return Some((offset, kind.unwrap_or(inside)));
            }
            if name == 0
                && let Some((further, found)) =
                    kind.filter(|kind| [STRUCT, UNION].contains(&kind.kind)).and_then(|kind| self.member(kind, wanted))
            {
                return Some((offset + further, found));
            }
        }
        None
    }

    fn by_number(&self, number: u32) -> Option<Type> {
        let start = |number: u32| self.starts.get(usize::try_from(number).ok()?).copied().filter(|_| number > 0);
        let mut found = self.at(start(number)?)?;
        // No chain of them is longer than there are types.
        for _ in 0..self.starts.len() {
            if !ALIASES.contains(&found.kind) {
                return Some(found);
            }
            found = self.at(start(found.leads_to)?)?;
        }
        None
    }

    /// struct btf_type: name, info, size or type; info is a count in bits 0 to 15, the kind from bit 24, a flag in bit 31.
    fn at(&self, start: usize) -> Option<Type> {
        let (name, info, leads_to) = (self.word(start)?, self.word(start + 4)?, self.word(start + 8)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let members = if [STRUCT, UNION].contains(&kind) { count } else { 0 };
        // What follows: of integers, variables and tags a word; of arrays three; of each member, parameter or value some.
        let more = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            6 | 13 => 8 * count,
            STRUCT | UNION | 15 | 19 => MEMBER * count,
            _ => 0,
        };
        let offset_mask = if info >> 31 == 1 { 0xff_ffff } else { u32::MAX };
        Some(Type { name, kind, offset_mask, members, leads_to, behind: start + TYPE + more })
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let from = usize::try_from(at).ok().and_then(|at| self.names.get(at..)).unwrap_or_default();
        from.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(self.bytes, at)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct outer { int a; const struct inner in; union { int u; }; void *p; }`, `struct inner { int x, y; }`, a function.
    fn made() -> Vec<u8> {
        const NAMES: &[u8] = b"\0int\0outer\0inner\0a\0in\0u\0p\0x\0y\0act\0";
        let name = |text: &str| {
            let text = format!("\0{text}\0");
            NAMES.windows(text.len()).position(|part| part == text.as_bytes()).unwrap() as u32 + 1
        };
        let info = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![name("int"), info(1, 0), 4, 32],
            vec![name("inner"), info(STRUCT, 2), 8, name("x"), 1, 0, name("y"), 1, 32],
            vec![0, info(10, 0), 2],
            vec![0, info(UNION, 1), 4, name("u"), 1, 0],
            vec![0, info(2, 0), 0],
            // With the flag, the upper octet of an offset is the size of a bit field.
            vec![name("outer"), 1 << 31 | info(STRUCT, 4), 24],
            vec![name("a"), 1, 32 << 24, name("in"), 3, 32, 0, 4, 96, name("p"), 5, 128],
            vec![name("act"), info(FUNC, 1), 1],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let header = [0x0001_eb9f, 24, 0, types.len() as u32, types.len() as u32, NAMES.len() as u32];
        [header.iter().flat_map(|word| word.to_ne_bytes()).collect(), types, NAMES.to_vec()].concat()
    }

    #[test]
    fn members_are_found_through_nameless_ones_and_aliases() {
        let made = made();
        let types = Types::read(&made).unwrap();
        for (path, offset) in [(&["a"][..], 0), (&["in"], 4), (&["in", "y"], 8), (&["u"], 12), (&["p"], 16)] {
            assert_eq!(types.offset_of("outer", path), Some(offset), "{path:?}");
        }
        assert_eq!((types.offset_of("outer", &["x"]), types.offset_of("oute", &["a"])), (None, None));
        assert_eq!((types.function("act"), types.function("inner"), types.function("ac")), (Some(7), None, None));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(at in 0..200_usize, to: u32) {
            let mut made = made();
            let at = at.min(made.len() - 4);
            made[at..at + 4].copy_from_slice(&to.to_ne_bytes());
            if let Some(types) = Types::read(&made) {
                types.offset_of("outer", &["in", "y"]);
            }
        }
    }
}
