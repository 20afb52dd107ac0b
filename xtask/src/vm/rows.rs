//! The rows of the matrix: root tests that say what egressd promises of a kernel. Few, because each runs emulated.

/// Major and minor number.
pub(super) type Version = (u32, u32);

/// What a row shows, by which test, and the first kernel on which it must.
pub(super) struct Row {
    pub(super) shows: &'static str,
    pub(super) test: &'static str,
    pub(super) since: Version,
}

impl Row {
    pub(super) fn is_for(&self, version: Version) -> bool {
        version >= self.since
    }
}

const fn row(shows: &'static str, test: &'static str) -> Row {
    since(OLDEST, shows, test)
}

const fn since(since: Version, shows: &'static str, test: &'static str) -> Row {
    Row { shows, test, since }
}

/// The first kernel that egressd runs on.
const OLDEST: Version = (5, 15);
const TCX: Version = (6, 6);
const NETKIT: Version = (6, 7);
const LSM_CGROUP: Version = (6, 0);
/// What has every row.
pub(super) const NEWEST: Version = (u32::MAX, 0);

pub(super) const ROWS: &[Row] = &[
    since((0, 0), "what lacks is named, and refused", "kernel::what_a_kernel_lacks_is_named"),
    row("every hook is attached, and held", "kernel::every_hook_is_attached_and_held"),
    row("packets at random: the cgroup's verdict", "parity::the_egress_hook_decides_as_the_host_does"),
    row("packets at random: the device's verdict", "parity::the_device_hook_decides_as_the_host_does"),
    row("a name opens its addresses alone", "names::t03_ip_literal"),
    row("UDP, six ways, v4 and v6, other resolvers", "sockets::t06_udp"),
    row("IPv6, mapped, NAT64, link-local", "sockets::t07_ipv6_parity"),
    row("raw, packet, VLAN, MPTCP, fast open, UDP-Lite", "sockets::t05_raw_icmp_and_packet_sockets"),
    row("options, extension headers, fragments", "headers::options_headers_and_disguises"),
    row("sockets from before", "attach::t17_sockets_from_before"),
    row("loopback and own addresses stay open", "own::t08_loopback_untouched"),
    row("devices that come, go and move", "device::a_device_that_comes_later_is_judged_and_one_that_goes_is_forgotten"),
    since(
        TCX,
        "tcx: sandboxes share a device",
        "device::shared::a_shared_device_passes_what_any_of_its_sandboxes_allows",
    ),
    since(NETKIT, "netkit", "device::netkit::with_ethernet_it_is_judged_and_without_it_is_refused"),
    row("a killed owner: pins hold, the next one adopts", "adopt::after_kill_9_the_next_owner_finds_it_as_it_was"),
    row("the end leaves nothing", "ends::t22_clean_exit"),
    since(LSM_CGROUP, "hooks follow the calling task", "kernel::hooks_follow_the_calling_task"),
    row(
        "programs that stay loaded",
        "preload::one_after_the_other_takes_the_same_programs_and_finds_nothing_of_the_one_before",
    ),
    row("sockets that are passed in", "bypass::descriptors::passed_over_a_unix_socket"),
    row("sockets that are brought along", "bypass::descriptors::brought_along_into_the_cgroup"),
    row("every way of a socket, 20 of them", "bypass::sockets::every_way_of_a_socket"),
    row("families and protocols", "bypass::sockets::families_and_protocols"),
    row("SCTP and DCCP, by options and in UDP too", "bypass::transports::sctp_and_dccp"),
    row("tunnels of eight kinds", "bypass::own::tunnels_of_every_kind"),
];
