//! Programs of a device, on the host's end of it: tcx where the kernel has it (6.6), filters of clsact before that.
//!
//! A tcx link is pinned, so nobody takes it off by name and no filter comes before it. A filter belongs to the device: it
//! outlives us as well, goes with the device, and whoever may change the host's traffic control may remove it.

use super::{
    attach::{AttachError, Hooked, held as links_held, pin},
    detach::{DetachError, target},
    load::Programs,
    netlink::{Netlink, NetlinkError, Request, attributes},
};
use aya::programs::{
    LinkOrder, Program, ProgramError, SchedClassifier, TcAttach, TcAttachType,
    links::FdLink,
    tc::{NlOptions, SchedClassifierLink, TcError, TcHandle, qdisc_add_clsact},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use serde::{Deserialize, Serialize};
use std::{fs, io, mem::ManuallyDrop, path::Path};

/// Programs of a device and the side of it that they sit on.
pub(crate) const DEVICE_HOOKS: [(&str, TcAttachType); 2] =
    [("device_egress", TcAttachType::Ingress), ("device_ingress", TcAttachType::Egress)];
/// The program that hands answers back from a guest's resolver.
pub(crate) const ANSWERS: &str = "guest_answers";
/// Asked before every other filter (`pref`).
const PRIORITY: u16 = 1;

// include/uapi/linux/pkt_sched.h, rtnetlink.h
pub(super) const TCMSG: usize = 20;
const TC_H_CLSACT: u32 = 0xffff_fff1;
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;

/// By what a device's programs are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Held {
    /// Links at the head of its tcx hooks.
    Tcx,
    /// Filters of its clsact hooks.
    Clsact,
}

/// What is behind a device, and so which programs judge it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    /// A network namespace, whose sockets cgroup hooks judge as well.
    Sandbox,
    /// Something that nobody else judges.
    Guest,
}

impl Behind {
    /// All that is loaded for it; in front the program of each of [`DEVICE_HOOKS`].
    pub(crate) const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Sandbox => &["device_egress", "device_ingress"],
            Self::Guest => &["guest_egress", "guest_ingress", ANSWERS],
        }
    }

    /// The program of a hook.
    fn program(self, hook: &'static str) -> &'static str {
        let names = DEVICE_HOOKS.iter().zip(self.programs());
        names.into_iter().find(|((of, _), _)| *of == hook).map_or(hook, |(_, program)| *program)
    }
}

/// The programs of one device in place.
pub(crate) struct Placed {
    pub(crate) held: Held,
    /// The clsact hooks were made for us.
    pub(crate) made_clsact: bool,
    _links: Vec<Hooked>,
}

/// The pin, and the name in `status`, of a device's program.
pub(crate) fn name(hook: &str, ifindex: u32) -> String {
    format!("{hook}-{ifindex}")
}

/// The handle of a sandbox's filters, so that whoever knows its nonce finds them.
pub(crate) const fn handle(nonce: u64) -> u32 {
    // 0 asks the kernel for one, and its own numbers end at INT_MAX (`net/sched/cls_bpf.c`).
    nonce as u32 & 0x7fff_fffe | 1
}

/// Puts both programs on the device. Which way the kernel has is found by trying; `tcx` false leaves tcx out.
pub(crate) fn attach(
    (programs, behind): (&mut Programs, Behind),
    ifindex: u32,
    nonce: u64,
    pins: &Path,
    tcx: bool,
) -> Result<Placed, AttachError> {
    if tcx {
        match attach_tcx(programs, behind, ifindex, pins) {
            // An attach type that the kernel does not know (`bpf_prog_get_type...`, `link_create` in kernel/bpf/syscall.c).
            Err(AttachError::Hook { source, .. }) if errno(&source) == Some(libc::EINVAL) => {}
            done => return done,
        }
    }
    attach_clsact(programs, behind, ifindex, nonce)
}

/// What another process placed, with its links held open too.
pub(crate) fn held(ifindex: u32, held: Held, made_clsact: bool, pins: &Path) -> Result<Placed, AttachError> {
    let names = DEVICE_HOOKS.map(|(hook, _)| name(hook, ifindex));
    let links = match held {
        Held::Tcx => links_held(pins, names.iter().map(String::as_str))?,
        Held::Clsact => Vec::new(),
    };
    Ok(Placed { held, made_clsact, _links: links })
}

fn classifier<'a>(programs: &'a mut Programs, name: &str) -> Result<&'a mut SchedClassifier, ProgramError> {
    match programs.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// At the head of the hooks, so that no program of somebody else's lets a packet pass before us.
fn attach_tcx(programs: &mut Programs, behind: Behind, ifindex: u32, pins: &Path) -> Result<Placed, AttachError> {
    let one = |programs: &mut Programs, hook, attach_type| -> Result<FdLink, ProgramError> {
        let program = classifier(programs, behind.program(hook))?;
        let id = program.attach(ifindex, TcAttach::Tcx { attach_type, order: LinkOrder::first() })?;
        Ok(program.take_link(id)?.try_into()?)
    };
    let links = DEVICE_HOOKS.into_iter().map(|(hook, side)| {
        let link = one(programs, hook, side).map_err(|source| AttachError::Hook { hook, source: Box::new(source) })?;
        pin(link, hook, name(hook, ifindex), pins)
    });
    let links = links.collect::<Result<_, _>>().inspect_err(|_| unpin(ifindex, pins))?;
    Ok(Placed { held: Held::Tcx, made_clsact: false, _links: links })
}

fn attach_clsact(programs: &mut Programs, behind: Behind, ifindex: u32, nonce: u64) -> Result<Placed, AttachError> {
    let made_clsact = match qdisc_add_clsact(ifindex) {
        Ok(()) => true,
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => false,
        Err(source) => return Err(filter_error("make", ifindex)(source)),
    };
    let undo = |error| {
        remove_filters(ifindex, nonce, made_clsact).ok();
        error
    };
    for (hook, side) in DEVICE_HOOKS {
        if filters(ifindex, side)?.iter().any(|filter| filter.priority <= PRIORITY) {
            return Err(undo(AttachError::NotFirst { ifindex, side: word(side) }));
        }
        let options = NlOptions { priority: PRIORITY, handle: handle(nonce).into(), classid: None };
        let one = || -> Result<SchedClassifierLink, ProgramError> {
            let program = classifier(programs, behind.program(hook))?;
            let id = program.attach(ifindex, TcAttach::Netlink { parent: side.into(), options })?;
            program.take_link(id)
        };
        let link = one().map_err(|source| undo(AttachError::Hook { hook, source: Box::new(source) }))?;
        // It stays when this process ends, as a pinned link does.
        let _stays = ManuallyDrop::new(link);
    }
    Ok(Placed { held: Held::Clsact, made_clsact, _links: Vec::new() })
}

/// [`ANSWERS`], from its pin, on what a device of the calling thread's network namespace receives, for as long as this lives.
pub(crate) fn attach_answers(pin: &Path, ifindex: u32) -> Result<SchedClassifierLink, AttachError> {
    let side = TcAttachType::Ingress;
    let attach = |how: TcAttach| -> Result<SchedClassifierLink, ProgramError> {
        let mut program = SchedClassifier::from_pin(pin)?;
        let id = program.attach(ifindex, how)?;
        program.take_link(id)
    };
    let failed = |source| AttachError::Hook { hook: ANSWERS, source: Box::new(source) };
    match attach(TcAttach::Tcx { attach_type: side, order: LinkOrder::first() }) {
        Err(error) if errno(&error) == Some(libc::EINVAL) => {
            qdisc_add_clsact(ifindex).map_err(filter_error("make", ifindex))?;
            let options = NlOptions { priority: PRIORITY, handle: TcHandle::from(1), classid: None };
            attach(TcAttach::Netlink { parent: side.into(), options }).map_err(failed)
        }
        done => done.map_err(failed),
    }
}

/// True while the kernel has both pinned links on the device.
pub(crate) fn links_are_attached(ifindex: u32, pins: &Path) -> Result<bool, DetachError> {
    for (hook, _) in DEVICE_HOOKS {
        if target(&pins.join(name(hook, ifindex)))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the pins of a device's links away.
pub(crate) fn unpin(ifindex: u32, pins: &Path) {
    for (hook, _) in DEVICE_HOOKS {
        let path = pins.join(name(hook, ifindex));
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "a pin stays");
        }
    }
}

/// Removes a sandbox's filters from a device of the calling thread's network namespace, and the clsact hooks where they were
/// made for them and nobody else uses them. Done as well when they, or the device, are gone.
pub(crate) fn remove_filters(ifindex: u32, nonce: u64, made_clsact: bool) -> Result<(), AttachError> {
    let failed = || filter_error("remove", ifindex);
    let mut netlink = Netlink::open(NETLINK_ROUTE).map_err(failed())?;
    let mut free = made_clsact;
    for (_, side) in DEVICE_HOOKS {
        for filter in filters(ifindex, side)? {
            if !filter.is_of(nonce) {
                free &= filter.handle == 0 && filter.priority == PRIORITY;
                continue;
            }
            let body = tcmsg(ifindex, filter.handle, parent(side), filter.info);
            request(&mut netlink, "RTM_DELTFILTER", libc::RTM_DELTFILTER, &body).map_err(failed())?;
        }
    }
    if free {
        let body = tcmsg(ifindex, 0, TC_H_CLSACT, 0);
        request(&mut netlink, "RTM_DELQDISC", libc::RTM_DELQDISC, &body).map_err(failed())?;
    }
    Ok(())
}

/// The sandbox's filter on each side of a device of the calling thread's network namespace: whether it is asked before every
/// other.
pub(crate) fn own_filters(ifindex: u32, nonce: u64) -> Result<[Option<bool>; 2], AttachError> {
    let own = |side| -> Result<Option<bool>, AttachError> {
        let all = filters(ifindex, side)?;
        let mut asked = all.iter().filter(|filter| filter.handle != 0);
        Ok(asked.position(|filter| filter.is_of(nonce)).map(|at| at == 0))
    };
    let [(_, egress), (_, ingress)] = DEVICE_HOOKS;
    Ok([own(egress)?, own(ingress)?])
}

/// The program of the sandbox's filter on what leaves by a device of the calling thread's network namespace.
pub(crate) fn filter_program(ifindex: u32, nonce: u64) -> Result<Option<u32>, AttachError> {
    let [(_, egress), _] = DEVICE_HOOKS;
    Ok(filters(ifindex, egress)?.into_iter().find(|filter| filter.is_of(nonce)).and_then(|filter| filter.program))
}

/// The programs that each side of a device of the calling thread's network namespace asks by tcx, in their order.
pub(crate) fn programs_on(ifindex: u32) -> Result<[Vec<u32>; 2], AttachError> {
    let all = |side| -> Result<Vec<u32>, AttachError> {
        let (_, programs) = SchedClassifier::query_tcx(ifindex, side).map_err(filter_error("list", ifindex))?;
        Ok(programs.iter().map(aya::programs::ProgramInfo::id).collect())
    };
    let [(_, egress), (_, ingress)] = DEVICE_HOOKS;
    Ok([all(egress)?, all(ingress)?])
}

/// Whether the kernel has tcx, as lo shows it.
pub(crate) fn has_tcx() -> Result<bool, AttachError> {
    const LO: u32 = 1;
    match SchedClassifier::query_tcx(LO, TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if errno(&error) == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(filter_error("list", LO)(error)),
    }
}

struct Filter {
    handle: u32,
    priority: u16,
    info: u32,
    kind: Vec<u8>,
    /// Id of its program; only ours are looked at.
    program: Option<u32>,
}

impl Filter {
    fn is_of(&self, nonce: u64) -> bool {
        self.handle == handle(nonce) && self.priority == PRIORITY && self.kind == b"bpf\0"
    }
}

/// The filters of one side, in the order in which the kernel asks them. Before those of one priority stands an entry of
/// handle 0 for all of them (`tcf_chain_dump` in net/sched/cls_api.c).
fn filters(ifindex: u32, side: TcAttachType) -> Result<Vec<Filter>, AttachError> {
    let body = tcmsg(ifindex, 0, parent(side), 0);
    let request = Request { name: "RTM_GETTFILTER", kind: libc::RTM_GETTFILTER, body: &body };
    let replies = match Netlink::open(NETLINK_ROUTE).and_then(|mut netlink| netlink.dump(request)) {
        Ok(replies) => replies,
        Err(error) if is_gone(&error) => Vec::new(),
        Err(error) => return Err(filter_error("list", ifindex)(error)),
    };
    let mut found = Vec::new();
    for reply in replies.iter().filter(|reply| reply.kind == libc::RTM_NEWTFILTER) {
        // struct tcmsg: family and padding, ifindex, handle, parent, info (priority << 16 | protocol).
        let word =
            |at: usize| reply.body.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let value = |wanted| {
            let all = attributes(reply.body.get(TCMSG..).unwrap_or_default());
            all.flatten().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
        };
        let kind = value(TCA_KIND).unwrap_or_default().to_owned();
        let options = value(TCA_OPTIONS).unwrap_or_default();
        let program = attributes(options).flatten().find(|(kind, _)| *kind == TCA_BPF_ID);
        let program = program.and_then(|(_, value)| value.try_into().ok()).map(u32::from_ne_bytes);
        found.push(Filter { handle: word(8), priority: (word(16) >> 16) as u16, info: word(16), kind, program });
    }
    Ok(found)
}

fn request(netlink: &mut Netlink, name: &'static str, kind: u16, body: &[u8]) -> Result<(), NetlinkError> {
    match netlink.call(Request { name, kind, body }) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.refusal(), Some(libc::ENOENT | libc::ENODEV))
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, ifindex, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn parent(side: TcAttachType) -> u32 {
    TcHandle::from(side).into()
}

const fn word(side: TcAttachType) -> &'static str {
    match side {
        TcAttachType::Ingress => "ingress",
        TcAttachType::Egress => "egress",
    }
}

fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    while let Some(current) = error {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        error = current.source();
    }
    None
}

fn filter_error<E: std::error::Error + Send + Sync + 'static>(
    action: &'static str,
    ifindex: u32,
) -> impl FnOnce(E) -> AttachError {
    move |source| AttachError::Filter { action, ifindex, source: Box::new(source) }
}
