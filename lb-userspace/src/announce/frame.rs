//! Frames by which a link is told whose an address is: ARP for IPv4 (RFC 826, 5227), neighbour discovery for IPv6
//! (RFC 4861). Pure: bytes in, bytes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// All on the link.
pub(super) const BROADCAST: Mac = [0xff; 6];
/// Length of an Ethernet header.
pub(super) const HEADER: usize = 14;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethernet, IPv4, six bytes, four bytes.
const ARP_HEAD: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Options with the hardware address of who asks, and of the target.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
/// Flags of an advertisement.
const OVERRIDE: u8 = 0x20;
const SOLICITED: u8 = 0x40;
/// What crossed no router.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The smallest frame, without its check sequence.
const SHORTEST: usize = 60;

/// Who wants to know whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// ARP.
    V4 { mac: Mac, asker: Ipv4Addr, target: Ipv4Addr },
    /// A neighbour solicitation; an asker without an address wants the target for itself.
    V6 { mac: Mac, asker: Ipv6Addr, target: Ipv6Addr },
}

impl Question {
    /// Whether it is asked by who has no address himself and is to note none: is the target somebody's?
    pub(super) fn is_probe(&self) -> bool {
        match self {
            Self::V4 { asker, .. } => asker.is_unspecified(),
            Self::V6 { asker, .. } => asker.is_unspecified(),
        }
    }
}

/// The question in a frame, if it is one. Who asks in the name of a group has no answer: all would get that.
pub(super) fn question(frame: &[u8]) -> Option<Question> {
    match u16::from_be_bytes(array(frame, 12)?) {
        ETHERTYPE_ARP => {
            let (head, op): ([u8; 6], [u8; 2]) = (array(frame, 14)?, array(frame, 20)?);
            (head == ARP_HEAD && op == [0, ARP_REQUEST]).then_some(())?;
            let (asker, target) = (array::<4>(frame, 28)?.into(), array::<4>(frame, 38)?.into());
            Some(Question::V4 { mac: array(frame, 22).filter(is_single)?, asker, target })
        }
        ETHERTYPE_IPV6 => {
            let [next, hops]: [u8; 2] = array(frame, 20)?;
            let [kind, code]: [u8; 2] = array(frame, 54)?;
            ((next, hops, kind, code) == (ICMPV6, HOP_LIMIT, SOLICITATION, 0)).then_some(())?;
            let (asker, target) = (Ipv6Addr::from(array(frame, 22)?), Ipv6Addr::from(array(frame, 62)?));
            let mac: Mac = array(frame, 6).filter(is_single)?;
            (!asker.is_multicast()).then_some(Question::V6 { mac, asker, target })
        }
        _ => None,
    }
}

/// Asks the host at a hardware address whether it is up, by an IP address that it should have. `own_v6`: the one that it
/// answers to; over IPv4 that is none, so that it notes nothing of us. `None`: there is no way to ask.
pub(super) fn ask(own: Mac, own_v6: Option<Ipv6Addr>, host: Mac, target: IpAddr) -> Option<Vec<u8>> {
    match target {
        IpAddr::V4(target) => Some(arp(ARP_REQUEST, own, Ipv4Addr::UNSPECIFIED, host, [0; 6], target)),
        IpAddr::V6(target) => {
            let message = neighbour(SOLICITATION, 0, target, (SOURCE, own));
            Some(icmpv6((own, own_v6?), (host, target), message))
        }
    }
}

/// The host that answers [`ask`].
pub(super) fn answerer(frame: &[u8], own: Mac) -> Option<Mac> {
    let is_answer = match u16::from_be_bytes(array(frame, 12)?) {
        ETHERTYPE_ARP => {
            let (head, op): ([u8; 6], [u8; 2]) = (array(frame, 14)?, array(frame, 20)?);
            head == ARP_HEAD && op == [0, ARP_REPLY] && array(frame, 38)? == [0; 4]
        }
        ETHERTYPE_IPV6 => {
            let [next, hops]: [u8; 2] = array(frame, 20)?;
            let [kind, code]: [u8; 2] = array(frame, 54)?;
            let [flags] = array(frame, 58)?;
            (next, hops, kind, code) == (ICMPV6, HOP_LIMIT, ADVERTISEMENT, 0) && flags & SOLICITED != 0
        }
        _ => false,
    };
    sender(frame).filter(|_| is_answer && frame.starts_with(&own))
}

/// An address that somebody says is his, and where he is: whoever sends ARP by it, or advertises it.
pub(super) fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let (addr, mac) = match u16::from_be_bytes(array(frame, 12)?) {
        ETHERTYPE_ARP => {
            let head: [u8; 6] = array(frame, 14)?;
            (head == ARP_HEAD).then_some(())?;
            (IpAddr::V4(array::<4>(frame, 28)?.into()), array(frame, 22)?)
        }
        ETHERTYPE_IPV6 => {
            let [next, hops]: [u8; 2] = array(frame, 20)?;
            let [kind, code]: [u8; 2] = array(frame, 54)?;
            ((next, hops, kind, code) == (ICMPV6, HOP_LIMIT, ADVERTISEMENT, 0)).then_some(())?;
            (IpAddr::V6(array::<16>(frame, 62)?.into()), array(frame, 6)?)
        }
        _ => return None,
    };
    is_single(&mac).then_some((addr, mac))
}

/// Who sent a frame.
pub(super) fn sender(frame: &[u8]) -> Option<Mac> {
    array(frame, 6)
}

fn is_single(mac: &Mac) -> bool {
    mac.first().is_some_and(|first| first & 1 == 0)
}

fn array<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Tells one asker that the target is ours.
pub(super) fn answer(own: Mac, question: &Question) -> Vec<u8> {
    match *question {
        Question::V4 { mac, asker, target } => arp(ARP_REPLY, own, target, mac, mac, asker),
        Question::V6 { asker, target, .. } if asker.is_unspecified() => {
            advertisement(own, target, all_nodes_mac(), ALL_NODES, Flags { solicited: false })
        }
        Question::V6 { mac, asker, target } => {
            advertisement(own, target, mac, asker, Flags { solicited: true })
        }
    }
}

/// Asks whether anybody else has an address, as who has none himself, so that nobody notes anything (RFC 5227 2.1.1, RFC
/// 4862 5.4.2).
pub(super) fn probe(own: Mac, vip: IpAddr) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => arp(ARP_REQUEST, own, Ipv4Addr::UNSPECIFIED, BROADCAST, [0; 6], vip),
        IpAddr::V6(vip) => {
            let group = solicited_group(vip);
            let [.., a, b, c, d] = group.octets();
            let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &vip.octets()].concat();
            icmpv6((own, Ipv6Addr::UNSPECIFIED), ([0x33, 0x33, a, b, c, d], group), message)
        }
    }
}

/// Tells all that an address is ours.
pub(super) fn announce(own: Mac, vip: IpAddr) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(vip) => announce_v4(own, vip).into(),
        IpAddr::V6(vip) => vec![announce_v6(own, vip)],
    }
}

/// Tells all that an IPv4 address is ours: as a request and as a reply, because some hear the one and some the
/// other.
pub(super) fn announce_v4(own: Mac, vip: Ipv4Addr) -> [Vec<u8>; 2] {
    [arp(ARP_REQUEST, own, vip, BROADCAST, [0; 6], vip), arp(ARP_REPLY, own, vip, BROADCAST, BROADCAST, vip)]
}

/// Tells all that an IPv6 address is ours.
pub(super) fn announce_v6(own: Mac, vip: Ipv6Addr) -> Vec<u8> {
    advertisement(own, vip, all_nodes_mac(), ALL_NODES, Flags { solicited: false })
}

/// The group that is asked for this address.
pub(super) fn solicited_group(vip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = vip.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// A header, and room for what follows.
pub(super) fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

fn arp(op: u8, own: Mac, vip: Ipv4Addr, to: Mac, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(to, own, ETHERTYPE_ARP);
    frame.extend_from_slice(&ARP_HEAD);
    frame.extend_from_slice(&[0, op]);
    frame.extend_from_slice(&own);
    frame.extend_from_slice(&vip.octets());
    frame.extend_from_slice(&target_mac);
    frame.extend_from_slice(&target.octets());
    frame.resize(SHORTEST, 0);
    frame
}

struct Flags {
    solicited: bool,
}

fn all_nodes_mac() -> Mac {
    [0x33, 0x33, 0, 0, 0, 1]
}

/// From the address itself: whoever holds it may speak for it.
fn advertisement(own: Mac, vip: Ipv6Addr, to_mac: Mac, to: Ipv6Addr, flags: Flags) -> Vec<u8> {
    let flags = OVERRIDE | if flags.solicited { SOLICITED } else { 0 };
    icmpv6((own, vip), (to_mac, to), neighbour(ADVERTISEMENT, flags, vip, (TARGET, own)))
}

/// A message of neighbour discovery, its checksum left out.
fn neighbour(kind: u8, flags: u8, target: Ipv6Addr, (option, mac): (u8, Mac)) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    // Its length is in units of eight bytes.
    message.extend_from_slice(&[option, 1]);
    message.extend_from_slice(&mac);
    message
}

fn icmpv6((from_mac, from): (Mac, Ipv6Addr), (to_mac, to): (Mac, Ipv6Addr), mut message: Vec<u8>) -> Vec<u8> {
    let sum = checksum(from, to, &message);
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = ethernet(to_mac, from_mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, HOP_LIMIT]);
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&to.octets());
    frame.extend_from_slice(&message);
    frame
}

/// Over pseudo header and message, as of RFC 4443.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        let word = |pair: &[u8]| match *pair {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(high) << 8,
            _ => 0,
        };
        bytes.chunks(2).map(word).sum()
    };
    let head = words(&from.octets()) + words(&to.octets()) + message.len() as u32 + u32::from(ICMPV6);
    let mut sum = head + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 7];
    const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
    const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
    const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);

    /// A solicitation as a host sends it.
    fn solicitation(asker: Ipv6Addr) -> Vec<u8> {
        let mut frame = ethernet([0x33, 0x33, 0xff, 0x12, 0x34, 0x56], THEIRS, ETHERTYPE_IPV6);
        frame.extend([0x60, 0, 0, 0, 0, 24, ICMPV6, HOP_LIMIT]);
        frame.extend(asker.octets());
        frame.extend(solicited_group(VIP6).octets());
        frame.extend([SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(VIP6.octets());
        frame
    }

    #[test]
    fn a_request_is_understood_and_answered_to_its_asker_alone() {
        let request = arp(ARP_REQUEST, THEIRS, CLIENT, BROADCAST, [0; 6], VIP);

        let asked = question(&request).expect("a question");
        assert_eq!(asked, Question::V4 { mac: THEIRS, asker: CLIENT, target: VIP });
        let reply = answer(OURS, &asked);
        let expected = [
            &THEIRS[..],
            &OURS,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &OURS,
            &VIP.octets(),
            &THEIRS,
            &CLIENT.octets(),
            &[0; 18],
        ]
        .concat();
        assert_eq!(reply, expected);
        assert_eq!(question(&reply), None, "a reply is no question");
    }

    #[test]
    fn whoever_speaks_by_an_address_claims_it() {
        let [request, reply] = announce_v4(THEIRS, VIP);
        let asked = arp(ARP_REQUEST, THEIRS, CLIENT, BROADCAST, [0; 6], VIP);
        for (case, frame, addr) in [
            ("a gratuitous request", request, VIP.into()),
            ("a gratuitous reply", reply, VIP.into()),
            ("a question", asked, CLIENT.into()),
            ("a probe", probe(THEIRS, VIP.into()), Ipv4Addr::UNSPECIFIED.into()),
            ("an advertisement", announce_v6(THEIRS, VIP6), VIP6.into()),
        ] {
            assert_eq!(claim(&frame), Some((addr, THEIRS)), "{case}");
        }
        for asked in [solicitation(CLIENT6), probe(THEIRS, VIP6.into())] {
            assert_eq!(claim(&asked), None);
        }
        assert_eq!(claim(&announce_v4(BROADCAST, VIP)[0]), None);
    }

    #[test]
    fn a_probe_is_a_question_of_who_has_no_address() {
        let (four, six) = (probe(OURS, VIP.into()), probe(OURS, VIP6.into()));

        let expected = Question::V4 { mac: OURS, asker: Ipv4Addr::UNSPECIFIED, target: VIP };
        assert_eq!((question(&four), &four[..6]), (Some(expected), &BROADCAST[..]));
        let expected = Question::V6 { mac: OURS, asker: Ipv6Addr::UNSPECIFIED, target: VIP6 };
        assert_eq!((question(&six), &six[..6]), (Some(expected), &[0x33, 0x33, 0xff, 0x12, 0x34, 0x56][..]));
        assert_eq!(six.len(), solicitation(CLIENT6).len());
        assert_eq!(checksum(Ipv6Addr::UNSPECIFIED, solicited_group(VIP6), &six[54..]), 0);
    }

    #[test]
    fn who_asks_in_the_name_of_all_has_no_answer() {
        for mac in [BROADCAST, [1, 0, 0x5e, 0, 0, 1]] {
            let request = arp(ARP_REQUEST, mac, CLIENT, BROADCAST, [0; 6], VIP);
            let mut solicited = solicitation(CLIENT6);
            solicited[6..12].copy_from_slice(&mac);

            assert_eq!((question(&request), question(&solicited)), (None, None), "{mac:?}");
        }
        assert_eq!(question(&solicitation(ALL_NODES)), None);
    }

    #[test]
    fn a_solicitation_is_answered_with_a_true_checksum() {
        for (asker, to, to_mac, flags) in [
            (CLIENT6, CLIENT6, THEIRS, 0x60),
            (Ipv6Addr::UNSPECIFIED, ALL_NODES, [0x33, 0x33, 0, 0, 0, 1], 0x20),
        ] {
            let asked = question(&solicitation(asker)).expect("a question");
            assert_eq!(asked, Question::V6 { mac: THEIRS, asker, target: VIP6 });

            let reply = answer(OURS, &asked);
            assert_eq!(reply[..6], to_mac);
            assert_eq!(reply[38..54], to.octets());
            assert_eq!((reply[54], reply[58]), (ADVERTISEMENT, flags));
            assert_eq!(reply[62..78], VIP6.octets());
            assert_eq!(reply[78..], [&[2, 1], &OURS[..]].concat());
            // What includes its own checksum sums up to nothing.
            assert_eq!(checksum(VIP6, to, &reply[54..]), 0);
        }
    }

    #[test]
    fn a_host_is_asked_for_itself_alone_and_what_it_answers_is_no_question() {
        let asked = ask(OURS, None, THEIRS, VIP.into()).expect("a frame");
        let unspecified = Ipv4Addr::UNSPECIFIED;
        assert_eq!(question(&asked), Some(Question::V4 { mac: OURS, asker: unspecified, target: VIP }));
        assert_eq!((&asked[..6], answerer(&asked, THEIRS)), (&THEIRS[..], None));
        let reply = arp(ARP_REPLY, THEIRS, VIP, OURS, OURS, unspecified);
        assert_eq!((answerer(&reply, OURS), question(&reply)), (Some(THEIRS), None));
        let of_another = arp(ARP_REPLY, THEIRS, VIP, OURS, OURS, CLIENT);
        assert_eq!(answerer(&of_another, OURS), None, "the kernel's own question");

        let asked = ask(OURS, Some(CLIENT6), THEIRS, VIP6.into()).expect("a frame");
        let expected = Question::V6 { mac: OURS, asker: CLIENT6, target: VIP6 };
        assert_eq!((question(&asked), answerer(&asked, THEIRS)), (Some(expected), None));
        assert_eq!((&asked[..6], &asked[78..]), (&THEIRS[..], &[&[1, 1], &OURS[..]].concat()[..]));
        assert_eq!(checksum(CLIENT6, VIP6, &asked[54..]), 0);
        let reply = answer(THEIRS, &expected);
        assert_eq!((answerer(&reply, OURS), question(&reply)), (Some(THEIRS), None));
        assert_eq!(ask(OURS, None, THEIRS, VIP6.into()), None, "nobody to answer to");
    }

    #[test]
    fn an_announcement_names_the_address_as_sender_and_target() {
        for (frame, op) in announce_v4(OURS, VIP).iter().zip([ARP_REQUEST, ARP_REPLY]) {
            assert_eq!(frame[..6], BROADCAST);
            assert_eq!(
                (frame[21], &frame[28..32], &frame[38..42]),
                (op, &VIP.octets()[..], &VIP.octets()[..])
            );
        }
        assert_eq!(announce_v6(OURS, VIP6)[38..54], ALL_NODES.octets());
        assert_eq!(solicited_group(VIP6), "ff02::1:ff12:3456".parse::<Ipv6Addr>().expect("an address"));
    }

    proptest! {
        /// Questions with some bytes changed, and cut off.
        #[test]
        fn whatever_is_on_the_wire_is_answered_to_one_host_or_not_at_all(
            six in any::<bool>(),
            changes in prop::collection::vec((0usize..86, any::<u8>()), 0..6),
            length in 0usize..120,
        ) {
            let mut frame = match six {
                true => solicitation(CLIENT6),
                false => arp(ARP_REQUEST, THEIRS, CLIENT, BROADCAST, [0; 6], VIP),
            };
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(length);

            let _ = claim(&frame);
            if let Some(asked) = question(&frame) {
                prop_assert!(frame.len() >= if six { 78 } else { 42 }, "{} bytes", frame.len());
                let reply = answer(OURS, &asked);
                let to_all = matches!(asked, Question::V6 { asker, .. } if asker.is_unspecified());
                prop_assert!(to_all || reply[0] & 1 == 0, "to {:?}", &reply[..6]);
                prop_assert_eq!(&reply[6..12], &OURS[..]);
            }
        }
    }
}
