//! What happens once per sandbox, and what the egress program costs by itself: figures for `cargo xtask bench filter`, which
//! runs this as `costs OBJECT ROUNDS`, OBJECT being the kernel half that build.rs made. Prints one JSON object.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a bench that cannot measure has to end"
)]

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap},
    programs::{CgroupSkb, Program, TestRun as _, TestRunOptions},
};
use bytemuck::Zeroable as _;
use egress_agent::{
    policy::Policy,
    sandbox::{Directories, Sandbox},
};
use egress_common::{
    addr::Addr,
    destination::PortRange,
    names,
    permit::{Grant, NEVER_NS, Permit, PermitKey, Rule, RuleRef, rule_flags},
    sandbox::{Identity, Sandbox as SandboxEntry},
};
use lab::Lab;
use nix::net::if_::{Interface, if_nameindex};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// Entries that the maps are made for.
const PERMITS: u32 = 1024;
const SLOT: u32 = 1;
const NONCE: u64 = 7;
const PERMITTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Runs of the program in one measurement.
const REPEAT: u32 = 200_000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let object = std::fs::read(arguments.next().expect("the path of the BPF object")).expect("the BPF object");
    let rounds: usize = arguments.next().expect("the number of rounds").parse().expect("a number of rounds");
    let lab = Lab::without_capture();
    let load = median((0..rounds).map(|_| timed(|| load(&object)).1));
    let whole = median((0..rounds).map(|round| attach(&lab, round)));
    let program = lab.outer_ns().enter(|| best_run(&object, rounds));
    let figures = serde_json::json!({
        "load_ms": load.as_secs_f64() * 1e3,
        "attach_ms": whole.saturating_sub(load).as_secs_f64() * 1e3,
        "program_ns": program.as_nanos(),
    });
    println!("{figures}");
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let made = work();
    (made, started.elapsed())
}

fn median(values: impl Iterator<Item = Duration>) -> Duration {
    let mut values: Vec<_> = values.collect();
    values.sort();
    values[values.len() / 2]
}

/// Every program of a sandbox without a device, verified and in the kernel.
fn load(object: &[u8]) -> Ebpf {
    let identity = Identity { slot: SLOT, reserved: 0, nonce: NONCE };
    let mut ebpf = EbpfLoader::new()
        .map_max_entries(names::map::PERMITS, PERMITS)
        .override_global(names::global::TEST_IDENTITY, bytemuck::bytes_of(&identity), true)
        .load(object)
        .expect("the maps");
    for (_, program) in ebpf.programs_mut() {
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => Ok(()),
        }
        .expect("a program");
    }
    ebpf
}

/// The library's own way, from the policy to enforcement.
fn attach(lab: &Lab, round: usize) -> Duration {
    let cgroup = lab.cgroup().child(&format!("attach-{round}"));
    let policy = Policy::from_toml("version = 1\n[allow]\naddresses = [\"198.51.100.10\"]\n").unwrap();
    let directories = Directories { state: lab.state_dir(), pin: lab.pin_dir() };
    let builder = Sandbox::builder(policy).cgroup(cgroup.path()).dirs(directories);
    let (sandbox, took) = timed(|| builder.attach().expect("attach"));
    sandbox.detach().expect("detach");
    took
}

/// The shortest run on an allowed IPv4 UDP packet: what else the machine does only adds.
fn best_run(object: &[u8], rounds: usize) -> Duration {
    let mut ebpf = load(object);
    permit(&mut ebpf);
    let egress: &CgroupSkb = ebpf.program("egress").expect("the egress program").try_into().expect("cgroup_skb");
    let packet = packet();
    // struct __sk_buff (include/uapi/linux/bpf.h): ifindex is at byte 40. Not 1, which is loopback and judged otherwise.
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&device().to_ne_bytes());
    let runs = (0..rounds).map(|_| {
        let options = TestRunOptions {
            data_in: Some(&packet),
            ctx_in: Some(&context),
            repeat: REPEAT,
            ..TestRunOptions::default()
        };
        let result = egress.test_run(options).expect("BPF_PROG_TEST_RUN");
        assert_eq!(result.return_value, 1, "the packet is denied: this would measure a denial");
        result.duration
    });
    runs.min().expect("a round")
}

fn permit(ebpf: &mut Ebpf) {
    let rule_ref = RuleRef { index: 1, tag: 1 };
    let mut rule = Rule { tag: 1, slot: SLOT, flags: rule_flags::STATIC, len: 1, ..Rule::zeroed() };
    rule.ranges[0] = PortRange::ALL;
    let mut permit = Permit::default();
    permit.grants[0] = Grant { expires_ns: NEVER_NS, rule: rule_ref };
    let mut sandboxes = Array::try_from(ebpf.map_mut(names::map::SANDBOXES).unwrap()).unwrap();
    sandboxes.set(SLOT, &SandboxEntry { nonce: NONCE, ..SandboxEntry::default() }, 0).unwrap();
    let mut rules = Array::try_from(ebpf.map_mut(names::map::RULES).unwrap()).unwrap();
    rules.set(rule_ref.index, &rule, 0).unwrap();
    let mut permits = HashMap::try_from(ebpf.map_mut(names::map::PERMITS).unwrap()).unwrap();
    permits.insert(&PermitKey { slot: SLOT, addr: Addr::from(PERMITTED) }, &permit, 0).unwrap();
}

/// Any device of this namespace but loopback.
fn device() -> u32 {
    let names = if_nameindex().expect("devices");
    names.iter().map(Interface::index).find(|index| *index != 1).expect("a device besides loopback")
}

/// Ethernet, IPv4, UDP to port 443, eight bytes. The checksums are nobody's business here.
fn packet() -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    bytes.extend([0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0, 198, 51, 100, 30]);
    bytes.extend(PERMITTED.octets());
    bytes.extend([0x9c, 0x40, 0x01, 0xbb, 0, 16, 0, 0]);
    bytes.extend([0; 8]);
    bytes
}
