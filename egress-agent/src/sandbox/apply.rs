//! Changes of an image, written to the maps.

use super::{error::Error, live::Kernel, target::Target};
use crate::{
    compile::{Change, Image, diff, undo},
    datapath::{
        attach::disown,
        tables::{TableError, Tables},
    },
};
use bytemuck::Zeroable as _;
use egress_common::{
    addr::Addr,
    permit::{Grant, NEVER_NS, NetworkKey, Permit, PermitKey, Rule, RuleRef},
};

/// Leads the maps from one image to another, or back where a write fails: what is in force after an error is `old`.
pub(super) fn exchange(old: &Image, new: &Image, kernel: &Kernel) -> Result<(), Error> {
    let changes = diff(old, new);
    let nonce = kernel.identity.nonce;
    let Err((done, error)) = apply(&changes, new, nonce, &kernel.tables) else { return Ok(()) };
    let back = undo(old, &changes[..=done]);
    if let Err((_, worse)) = apply(&back, old, nonce, &kernel.tables) {
        // Neither policy as a whole: closed for good, rather than open by accident.
        tracing::error!(%worse, "the old policy could not be restored; the sandbox is closed");
        match kernel.target {
            Target::Cgroup { id, .. } => disown(&kernel.tables, id)?,
            Target::Guest { ifindex, .. } => kernel.tables.remove_device(ifindex)?,
        }
    }
    Err(error.into())
}

/// Writes what the new image changes, in order. `nonce` is the sandbox's. An error comes with the index of the change that
/// failed.
pub(super) fn apply(changes: &[Change], new: &Image, nonce: u64, tables: &Tables) -> Result<(), (usize, TableError)> {
    changes
        .iter()
        .enumerate()
        .try_for_each(|(index, change)| write(change, new, nonce, tables).map_err(|error| (index, error)))
}

fn write(change: &Change, new: &Image, nonce: u64, tables: &Tables) -> Result<(), TableError> {
    match change {
        Change::SetRule(reference, rule) => tables.set_rule(reference.index, rule),
        Change::ClearRule(reference) => clear_rule(*reference, tables),
        Change::SetNetwork(prefix, network) => {
            let key = NetworkKey { slot: new.slot, addr: prefix.addr() };
            tables.set_network(key, prefix.length().into(), network)
        }
        Change::RemoveNetwork(prefix) => {
            tables.remove_network(NetworkKey { slot: new.slot, addr: prefix.addr() }, prefix.length().into())
        }
        Change::SetPermit(addr, _) | Change::RemovePermit(addr) => rewrite(*addr, new, tables),
        Change::Restamp => restamp(new, tables),
        Change::SetSandbox(settings) => {
            // First: the flags in the sandbox's value say that there are any.
            tables.set_limits(new.slot, settings.limits)?;
            tables.set_sandbox(new.slot, settings.sandbox(nonce))
        }
        Change::SetOwn(addr) => tables.set_own(new.slot, *addr),
        Change::RemoveOwn(addr) => tables.remove_own(new.slot, *addr),
    }
}

fn clear_rule(reference: RuleRef, tables: &Tables) -> Result<(), TableError> {
    match tables.rule(reference)? {
        Some(_) => tables.set_rule(reference.index, &Rule::zeroed()),
        None => Ok(()),
    }
}

/// The address's entry as the new image has it, with the grants that were learned.
fn rewrite(addr: Addr, new: &Image, tables: &Tables) -> Result<(), TableError> {
    let key = PermitKey { slot: new.slot, addr };
    let before = tables.permit(&key)?;
    match new.permit_with(addr, learned(before.as_ref())) {
        Some(permit) => tables.set_permit(&key, &permit),
        None => tables.remove_permit(&key),
    }
}

fn restamp(new: &Image, tables: &Tables) -> Result<(), TableError> {
    for (key, permit) in tables.permits(new.slot)? {
        if learned(Some(&permit)).next().is_some() {
            rewrite(key.addr, new, tables)?;
        }
    }
    Ok(())
}

/// Grants that came from DNS.
fn learned(permit: Option<&Permit>) -> impl Iterator<Item = Grant> {
    let grants = permit.map(|permit| permit.grants).unwrap_or_default();
    grants.into_iter().filter(|grant| !grant.rule.is_none() && grant.expires_ns != NEVER_NS)
}
