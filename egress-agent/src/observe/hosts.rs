//! `/etc/hosts`, to tell whoever reads a denial that the address came from there and not from DNS.
//!
//! The file decides nothing: an entry in it opens no address, which is exactly what people need to be told.

use std::{collections::HashMap, net::IpAddr};

/// Addresses that the file names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hosts(HashMap<IpAddr, String>);

impl Hosts {
    /// Reads the text of the file (hosts(5)). Lines that are no entry are passed over, as resolvers do; the first name of the
    /// first line of an address counts.
    pub fn parse(text: &str) -> Self {
        let mut names = HashMap::new();
        for line in text.lines() {
            let entry = line.split('#').next().unwrap_or_default();
            let mut words = entry.split_whitespace();
            if let (Some(addr), Some(name)) = (words.next().and_then(|word| word.parse::<IpAddr>().ok()), words.next())
            {
                names.entry(addr.to_canonical()).or_insert_with(|| super::escape::name(name));
            }
        }
        Self(names)
    }

    /// The name that the file gives an address, escaped.
    pub fn name(&self, addr: IpAddr) -> Option<&str> {
        self.0.get(&addr.to_canonical()).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_count_and_the_rest_is_passed_over() {
        let hosts = Hosts::parse(
            "127.0.0.1\tlocalhost\n# 192.0.2.1 comment.test\n198.51.100.7 DB.test db # own\n\
             2001:db8::7 six.test\n198.51.100.7 later.test\nnot-an-address x\n203.0.113.9\n",
        );
        assert_eq!(hosts.name("198.51.100.7".parse().unwrap()), Some("db.test"));
        assert_eq!(hosts.name("::ffff:198.51.100.7".parse().unwrap()), Some("db.test"));
        assert_eq!(hosts.name("2001:db8::7".parse().unwrap()), Some("six.test"));
        for absent in ["192.0.2.1", "203.0.113.9"] {
            assert_eq!(hosts.name(absent.parse().unwrap()), None);
        }
    }
}
