//! The sides of a comparison: each has a namespace pair, a cgroup and a generator of its own, and all live at the same
//! time, so that rounds can be interleaved and what the host does meanwhile meets every side alike.

use super::{
    super::generator::Generator,
    generator::{self, Ask, Measured},
};
use anyhow::{Context as _, Result, bail};
use lab::{Cgroup, Lab, Launch, Netns, Running};
use nix::sys::signal::Signal;
use std::{
    fmt::Write as _,
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

/// What filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Filter {
    /// Nothing: the measure of the others.
    None,
    /// `socket cgroupv2` and a hash set in an nftables output chain.
    Nftables,
    /// egressd's cgroup hooks.
    Egressd,
    /// The same, and its TC program on the host-side device.
    EgressdDevice,
}

impl Filter {
    pub(super) const ALL: [Self; 4] = [Self::None, Self::Nftables, Self::Egressd, Self::EgressdDevice];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "no filter",
            Self::Nftables => "nftables",
            Self::Egressd => "egressd",
            Self::EgressdDevice => "egressd + device",
        }
    }
}

/// One side, ready to be asked.
pub(super) struct Side {
    pub(super) filter: Filter,
    generator: Generator,
    agent: Option<Running>,
    // Last, because the others live in what it made.
    _world: World,
}

struct World {
    lab: Lab,
    cgroup: Cgroup,
    boxed: Netns,
    outer: Netns,
}

impl Side {
    /// Builds the side with so many permitted addresses.
    pub(super) fn new(filter: Filter, permitted: u32) -> Result<Self> {
        let lab = Lab::without_capture();
        let cgroup = lab.cgroup().child("bench");
        let world = World { cgroup, boxed: Netns::new(), outer: Netns::new(), lab };
        world.wire();
        world.listen()?;
        let agent = match filter {
            Filter::None => None,
            Filter::Nftables => {
                world.nftables(permitted)?;
                None
            }
            Filter::Egressd => Some(world.attach(&world.boxed, &[], permitted)?),
            Filter::EgressdDevice => {
                let netns = world.boxed.path();
                Some(world.attach(&world.outer, &["--netns", &netns.to_string_lossy()], permitted)?)
            }
        };
        let generator = Generator::start(&["generate"], &world.boxed, &world.cgroup)?;
        let mut side = Self { filter, generator, agent, _world: world };
        let probe = side.ask(Ask::Probe)?;
        generator::check(&probe, filter != Filter::None, filter.name())?;
        Ok(side)
    }

    pub(super) fn ask(&mut self, ask: Ask) -> Result<Measured> {
        let measured = self.generator.ask(&ask).and_then(|line| Ok(serde_json::from_str(&line)?));
        measured.with_context(|| format!("{}: {ask:?}", self.filter.name()))
    }

    /// Process of the agent, where there is one.
    pub(super) fn agent_pid(&self) -> Option<i32> {
        self.agent.as_ref().map(|agent| agent.pid().as_raw())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The cgroup has to be empty, or egressd rightly leaves it closed.
        self.generator.end();
        if let Some(mut agent) = self.agent.take() {
            agent.signal(Signal::SIGTERM);
            // Past the deadline it is killed; the world takes down what it leaves.
            let deadline = Instant::now() + Duration::from_secs(10);
            while agent.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

impl World {
    /// One veth pair and nothing between, so that no bridge dilutes what the filter costs.
    fn wire(&self) {
        self.outer.ip(&format!("link add host0 type veth peer name eth0 netns {}", self.boxed.path().display()));
        self.outer.ip("addr add 198.51.100.2/24 dev host0\nlink set host0 up\nroute add local 198.18.0.0/15 dev lo");
        self.boxed.ip("addr add 198.51.100.30/24 dev eth0\nlink set eth0 up\nroute add 198.18.0.0/15 via 198.51.100.2");
    }

    fn listen(&self) -> Result<()> {
        let any = std::net::Ipv4Addr::UNSPECIFIED;
        let (discard, connects, bulk, echo) = self.outer.enter(|| {
            let discard = std::net::UdpSocket::bind((any, generator::UDP_PORT))?;
            // Nobody reads it: a full buffer drops at the same cost for all.
            nix::sys::socket::setsockopt(&discard, nix::sys::socket::sockopt::RcvBuf, &4096)?;
            let connects = TcpListener::bind((any, generator::CONNECT_PORT))?;
            let bulk = TcpListener::bind((any, generator::BULK_PORT))?;
            Ok::<_, std::io::Error>((discard, connects, bulk, TcpListener::bind((any, generator::ECHO_PORT))?))
        })?;
        // The threads end with the process; a side's sockets are few.
        std::thread::spawn(move || {
            let _open = discard;
            for stream in connects.incoming() {
                drop(stream);
            }
        });
        for (listener, work) in [(bulk, generator::swallow as fn(TcpStream) -> Result<()>), (echo, generator::echo)] {
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(std::result::Result::ok) {
                    if let Err(error) = work(stream) {
                        eprintln!("bench: sink: {error:#}");
                    }
                }
            });
        }
        Ok(())
    }

    /// `egressd attach` inside `netns`, in force when this returns.
    fn attach(&self, netns: &Netns, flags: &[&str], permitted: u32) -> Result<Running> {
        let mut policy = String::from("version = 1\nname = \"bench\"\n\n[allow]\naddresses = [\n");
        for index in 0..permitted {
            writeln!(policy, "  \"{}\",", generator::address(index))?;
        }
        policy.push_str("]\n");
        let policy = self.lab.file("bench.toml", &policy);
        let mut launch = self.lab.egressd("attach").inside(netns).arg("--cgroup").arg(self.cgroup.path());
        launch = launch.arg("--policy").arg(&policy);
        launch = flags.iter().fold(launch, Launch::arg);
        let mut agent = launch.spawn();
        let status = self.lab.egressd("status").inside(netns).arg("--cgroup").arg(self.cgroup.path());
        let deadline = Instant::now() + Duration::from_secs(30);
        while status.output().code != Some(0) {
            if !agent.is_alive() || Instant::now() > deadline {
                bail!("egressd attach with {permitted} addresses is not in force: {}", agent.said().trim());
            }
        }
        Ok(agent)
    }

    /// What somebody would write by hand: the cgroup's packets to the set, and no others.
    fn nftables(&self, permitted: u32) -> Result<()> {
        // nft looks below /sys/fs/cgroup, wherever in it cgroup v2 is mounted; the level counts from the v2 root.
        let path = self.cgroup.path().strip_prefix("/sys/fs/cgroup").context("cgroups are not below /sys/fs/cgroup")?;
        let path = path.to_string_lossy();
        let level = self.level()?;
        let mut rules = String::from("table inet bench {\n set permitted { type ipv4_addr; elements = { ");
        for index in 0..permitted {
            write!(rules, "{},", generator::address(index))?;
        }
        rules.push_str(" } }\n chain out { type filter hook output priority 0;\n");
        writeln!(rules, "  socket cgroupv2 level {level} \"{path}\" ip daddr @permitted accept")?;
        writeln!(rules, "  socket cgroupv2 level {level} \"{path}\" drop\n }}\n}}")?;
        let file = self.lab.file("bench.nft", &rules);
        let output = self.boxed.command("nft").arg("-f").arg(&file).output().context("cannot run nft")?;
        if !output.status.success() {
            bail!("nft -f: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Depth of the cgroup below the v2 root.
    fn level(&self) -> Result<usize> {
        let mut command = Command::new("cat");
        command.arg("/proc/self/cgroup");
        self.cgroup.place(&mut command);
        let output = command.output().context("cannot run cat")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let path =
            text.lines().find_map(|line| line.strip_prefix("0::/")).context("no v2 line in /proc/self/cgroup")?;
        Ok(path.split('/').filter(|part| !part.is_empty()).count())
    }
}
