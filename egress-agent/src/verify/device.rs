//! The program on a device, run on the frames of probes.

use super::{
    VerifyError,
    probes::Targets,
    report::{Outcome, Proof, Row},
};
use crate::{
    datapath::test_run::Loaded,
    policy::Mode,
    sandbox::{self, DeviceView, View},
};
use std::{io, net::IpAddr};

/// What the program says to a frame that it lets pass (`TCX_NEXT`, and `TC_ACT_UNSPEC` in a filter).
const NEXT: i32 = -1;
/// All rows of a device that has no verdict of its own.
const TECHNIQUE: &str = "frames";

/// A row for each way out, by the frames that it `sent` where nothing stopped them.
pub(super) fn rows(
    view: &View,
    device: &DeviceView,
    targets: &Targets,
    sent: &[(&'static str, Vec<Vec<u8>>)],
) -> Result<Vec<Row>, VerifyError> {
    if device.shared {
        let why = "sandboxes share the device, and a frame says nothing of its sender (L1)";
        return Ok(vec![Row::told(TECHNIQUE, &device.name, Outcome::NotApplicable, why)]);
    }
    let (Some(program), Some(host)) = (device.program, &view.host) else {
        let row = Row::shown(TECHNIQUE, &device.name, Outcome::Leaked, Proof::Listing);
        return Ok(vec![row.because("no program of the sandbox is on the device")]);
    };
    let failed = |source| VerifyError::Device { device: device.name.clone(), source };
    // A device is known by its number in its own namespace alone.
    let run = || -> io::Result<Vec<Row>> {
        let program = Loaded::open(program)?;
        let passes = |frame: &Vec<u8>| program.run(frame, device.ifindex).map(|verdict| verdict == NEXT);
        let alive = passes(&control(view, targets))?;
        let mut rows = Vec::new();
        for (technique, frames) in sent {
            let passed = frames.iter().map(passes).collect::<io::Result<Vec<_>>>()?;
            let row = |outcome| Row::shown(technique, &device.name, outcome, Proof::TestRun);
            rows.push(match (passed.contains(&true), alive) {
                (true, _) if view.policy.mode == Mode::Observe => {
                    row(Outcome::Leaked).because("the policy only observes")
                }
                (true, _) => row(Outcome::Leaked),
                (false, true) => row(Outcome::Contained),
                (false, false) => row(Outcome::NotShown).because("a frame that always passes did not either"),
            });
        }
        Ok(rows)
    };
    host.enter(run).map_err(sandbox::Error::from)?.map_err(failed)
}

/// A frame that passes every device: ARP for the gateway, or a router solicitation where there is no IPv4.
fn control(view: &View, targets: &Targets) -> Vec<u8> {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    if view.sources.contains(&IpAddr::V4(targets.own)) {
        // RFC 826: Ethernet, IPv4, sizes 6 and 4, request; the sender; then whom it asks for.
        let ethernet = [&[0xff; 6], &MAC[..], &[8, 6]].concat();
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1], &MAC[..], &targets.own.octets(), &[0; 6], &targets.own.octets()].concat();
        return [ethernet, arp].concat();
    }
    let own = view.sources.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip.octets()) } else { None });
    // RFC 4861, 4.1, to all routers of the link.
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 2], &MAC[..], &[0x86, 0xdd]].concat();
    let header = [&[0x60, 0, 0, 0, 0, 8, 58, 255], &own.unwrap_or_default()[..], &group].concat();
    [ethernet, header, vec![133, 0, 0, 0, 0, 0, 0, 0]].concat()
}
