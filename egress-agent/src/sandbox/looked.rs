//! The kernel's verdict, asked from here: the same function over the same maps.

use super::permits::now_ns;
use crate::datapath::tables::{TableError, Tables};
use egress_common::{
    addr::Addr,
    permit::{Match, Network, Permit, PermitKey, RuleRef, match_rule},
    question::{Asked, Path, Question},
    verdict::{ListenerKey, Tables as Lookups, Verdict, decide},
};
use std::cell::RefCell;

/// What would be told of that destination on that path, and the permit of its address. `protocol` is an IP protocol number.
pub(super) fn judge(
    tables: &Tables,
    slot: u32,
    path: Path,
    addr: Addr,
    port: u16,
    protocol: u8,
) -> Result<(Verdict, Option<Permit>), TableError> {
    let dst = addr.routed();
    let question = Question { dst, asked: Asked::new(path, protocol, Some(port), 0) };
    let looked = Looked::at(tables, PermitKey { slot, addr: dst })?;
    let verdict = decide(slot, &tables.sandbox(slot)?, question, &looked);
    match looked.failed.into_inner() {
        Some(error) => Err(error),
        None => Ok((verdict, looked.permit)),
    }
}

/// The kernel's maps as the verdict asks for them, for one address.
struct Looked<'a> {
    tables: &'a Tables,
    permit: Option<Permit>,
    network: Option<Network>,
    own: bool,
    now_ns: u64,
    failed: RefCell<Option<TableError>>,
}

impl<'a> Looked<'a> {
    fn at(tables: &'a Tables, key: PermitKey) -> Result<Self, TableError> {
        Ok(Self {
            tables,
            permit: tables.permit(&key)?,
            network: tables.network(&key)?,
            own: tables.is_own(&key)?,
            now_ns: now_ns(),
            failed: RefCell::new(None),
        })
    }
}

impl Lookups for Looked<'_> {
    fn permit(&self, _key: &PermitKey) -> Option<&Permit> {
        self.permit.as_ref()
    }

    fn network(&self, _key: &PermitKey) -> Option<&Network> {
        self.network.as_ref()
    }

    fn matches(&self, rule: RuleRef, slot: u32, asked: Asked) -> Match {
        match self.tables.rule(rule) {
            Ok(found) => match_rule(found.as_ref(), rule.tag, slot, asked),
            Err(error) => {
                self.failed.replace(Some(error));
                Match::Missing
            }
        }
    }

    fn is_own(&self, _key: &PermitKey) -> bool {
        self.own
    }

    fn listener(&self, key: &ListenerKey) -> Option<u64> {
        self.tables.listener(key).unwrap_or_else(|error| {
            self.failed.replace(Some(error));
            None
        })
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }
}
