//! What is written is read, and nothing else.

use proptest::prelude::*;

use super::*;

fn slots() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(any::<u32>(), 0..40)
}

fn segments() -> impl Strategy<Value = Vec<SegmentEntry>> {
    prop::collection::vec(any::<SegmentEntry>(), 0..=MAX_SEGMENTS)
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<u64>(), any::<Option<u64>>(), segments()).prop_map(|(layout, reattach, segments)| Request::Hello {
            layout,
            reattach,
            segments
        }),
        any::<(u64, u16, u32, bool, bool)>().prop_map(|(id, class, count, urgent, again)| Request::Lease {
            id,
            class,
            count,
            urgent,
            again
        }),
        slots().prop_map(|slots| Request::Return { slots }),
        slots().prop_map(|slots| Request::Dying { slots }),
        any::<u64>().prop_map(|id| Request::Pins { id }),
        any::<u64>().prop_map(|id| Request::Stats { id }),
        any::<u64>().prop_map(|id| Request::Collect { id }),
        Just(Request::Bye),
        any::<u64>().prop_map(|id| Request::Export { id }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<(u64, u32, u64, u64, u32, u32)>(), segments()).prop_map(
            |((tag, index, instance, ctl_len, pin_page, host), segments)| {
                Reply::Welcome { tag, index, instance, ctl_len, pin_page, segments, host }
            }
        ),
        (any::<u64>(), any::<u8>(), ".{0,50}").prop_map(|(id, kind, text)| Reply::Refused { id, kind, text }),
        any::<SegmentEntry>().prop_map(|(index, len)| Reply::Segment { index, len }),
        (any::<(u64, u16)>(), slots()).prop_map(|((id, class), slots)| Reply::Leased { id, class, slots }),
        any::<(u64, u32)>().prop_map(|(id, page)| Reply::Page { id, page }),
        Just(Reply::Recall),
        any::<u64>().prop_map(|id| Reply::Stats { id }),
        any::<(u64, u64)>().prop_map(|(id, bytes)| Reply::Collected { id, bytes }),
        Just(Reply::Draining),
        (any::<(u64, [u8; 16], u16)>()).prop_map(|(id, ip, port)| Reply::Exported {
            id,
            contact: SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port)
        }),
        (any::<(u64, [u8; 4], u16)>()).prop_map(|(id, ip, port)| Reply::Exported { id, contact: (ip, port).into() }),
    ]
}

fn keep() -> impl Strategy<Value = Keep> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(instance, len)| Keep::Ctl { instance, len }),
        any::<SegmentEntry>().prop_map(|(index, len)| Keep::Segment { index, len }),
        Just(Keep::Ready),
        Just(Keep::Drain),
    ]
}

proptest! {
    #[test]
    fn round_trip(request in request(), reply in reply(), keep in keep()) {
        let mut packet = vec![7; 3];
        request.encode(&mut packet).unwrap();
        prop_assert_eq!(Request::decode(&packet).unwrap(), request);
        prop_assert_eq!(check_packet(&packet), 1, "no reply and no supervisor's message at once");
        reply.encode(&mut packet).unwrap();
        prop_assert_eq!(Reply::decode(&packet).unwrap(), reply);
        prop_assert_eq!(check_packet(&packet), 1);
        keep.encode(&mut packet);
        prop_assert_eq!(Keep::decode(&packet).unwrap(), keep);
        prop_assert_eq!(check_packet(&packet), 1);
    }

    #[test]
    fn truncated_or_longer_is_refused(request in request(), reply in reply()) {
        let mut packets = [Vec::new(), Vec::new()];
        request.encode(&mut packets[0]).unwrap();
        reply.encode(&mut packets[1]).unwrap();
        for mut packet in packets {
            for n in 0..packet.len() {
                prop_assert_eq!(check_packet(&packet[..n]), 0, "{} of {}", n, packet.len());
            }
            packet.push(0);
            prop_assert_eq!(check_packet(&packet), 0);
        }
    }

    #[test]
    fn arbitrary_bytes(op in any::<u8>(), mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_packet(&bytes);
        bytes.splice(0..0, [VERSION, op, 0, 0, 0, 0, 0, 0, 0, 0]);
        check_packet(&bytes);
    }

    #[test]
    fn flipped_bits(request in request(), reply in reply(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut packet = Vec::new();
        request.encode(&mut packet).unwrap();
        *at.get_mut(&mut packet) ^= 1u8 << bit;
        check_packet(&packet);
        reply.encode(&mut packet).unwrap();
        *at.get_mut(&mut packet) ^= 1u8 << bit;
        check_packet(&packet);
    }
}

#[test]
fn bytes_are_stable() {
    // Changing these lines changes the protocol: bump VERSION and write it in the CHANGELOG.
    let mut packet = Vec::new();
    Request::Lease { id: 0x0102, class: 3, count: 4, urgent: true, again: false }.encode(&mut packet).unwrap();
    assert_eq!(packet, [0xb1, 2, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 1, 0]);
    Reply::Segment { index: 1, len: 0x0200 }.encode(&mut packet).unwrap();
    assert_eq!(packet, [0xb1, 0x83, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn bounds() {
    let mut packet = Vec::new();
    Reply::Leased { id: 1, class: 2, slots: vec![9; MAX_SLOTS] }.encode(&mut packet).unwrap();
    assert!(packet.len() <= MAX_PACKET && packet.len() > MAX_PACKET - 4);
    assert_eq!(check_packet(&packet), 1);
    let error = Request::Dying { slots: vec![9; MAX_SLOTS + 1] }.encode(&mut packet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let hello = Request::Hello { layout: 1, reattach: Some(2), segments: vec![(1, 1); MAX_SEGMENTS] };
    hello.encode(&mut packet).unwrap();
    assert_eq!(hello.descriptors(), MAX_FDS);
    // A count that the packet cannot hold allocates nothing and is refused.
    let mut packet = vec![VERSION, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    packet.extend_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Request::decode(&packet).unwrap_err().kind(), ErrorKind::Invalid);
    Reply::Refused { id: 0, kind: 0, text: "ä".repeat(MAX_TEXT) }.encode(&mut packet).unwrap();
    let Reply::Refused { text, .. } = Reply::decode(&packet).unwrap() else { panic!("a refusal") };
    assert_eq!(text.len(), MAX_TEXT);
}

#[test]
fn kinds_keep_their_numbers() {
    assert_eq!(kind_code(ErrorKind::NotFound), 1);
    assert_eq!(kind_code(ErrorKind::Io), 17);
    for (i, kind) in KINDS.iter().enumerate() {
        assert_eq!(kind_of(kind_code(*kind)), *kind);
        assert!(!KINDS[..i].contains(kind));
    }
    assert_eq!((kind_of(0), kind_of(200)), (ErrorKind::Io, ErrorKind::Io));
    let error = Error::io("lease", "1 GiB", std::io::Error::from_raw_os_error(28));
    let Reply::Refused { id: 5, kind, text } = Reply::refuse(5, &error) else { panic!("a refusal") };
    assert_eq!(kind_of(kind), ErrorKind::NoSpace);
    assert!(text.starts_with("1 GiB: No space left"), "{text}");
}
