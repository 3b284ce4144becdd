//! The window of a session, both ends, against a slow list of what is on its way.

use crate::samples::cases;
use leeward_model::Lsn;
use leeward_wire::{
    credits::{CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, CreditError, ReceiveWindow, SendWindow},
    data::Ack,
    record::RECORD_BYTES_MAX,
};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn window() -> SendWindow {
    SendWindow::new(4 * MIB, Lsn(100)).expect("within the bounds")
}

fn ack(lsn: u64, credit_bytes: u64) -> Ack {
    Ack { durable_lsn: Lsn(lsn), credit_bytes }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Durable(prop::sample::Index, u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (80..=RECORD_BYTES_MAX).prop_map(Step::Send),
        1 => (any::<prop::sample::Index>(), CREDIT_BYTES_MIN..8 * MIB)
            .prop_map(|(upto, credit)| Step::Durable(upto, credit)),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn the_window_is_never_exceeded(steps in proptest::collection::vec(any_step(), 1..60)) {
        let mut window = window();
        let mut credit = 4 * MIB;
        let mut on_the_way: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            match step {
                Step::Send(len) => {
                    let bytes: u64 = on_the_way.iter().map(|(_, len)| len).sum();
                    let allowed = bytes + len as u64 <= credit;
                    prop_assert_eq!(window.can_send(len), allowed);
                    if allowed {
                        let lsn = window.last_sent().next();
                        window.sent(lsn, len);
                        on_the_way.push((lsn.0, len as u64));
                        prop_assert!(window.in_flight_bytes() <= credit);
                    }
                }
                Step::Durable(upto, granted) => {
                    let span = window.last_sent().0 - window.durable_lsn().0 + 1;
                    let lsn = window.durable_lsn().0 + upto.index(span as usize) as u64;
                    let before: u64 = on_the_way.iter().map(|(_, len)| len).sum();
                    on_the_way.retain(|(sent, _)| *sent > lsn);
                    let after: u64 = on_the_way.iter().map(|(_, len)| len).sum();
                    prop_assert_eq!(window.acked(ack(lsn, granted)), Ok(before - after));
                    credit = granted;
                }
            }
            let bytes: u64 = on_the_way.iter().map(|(_, len)| len).sum();
            prop_assert_eq!(window.in_flight_bytes(), bytes);
        }
    }

    #[test]
    fn a_sender_that_keeps_its_window_never_overruns_the_receiver(
        steps in proptest::collection::vec(any_step(), 1..60),
    ) {
        let mut sender = window();
        let mut receiver = ReceiveWindow::new(4 * MIB, Lsn(100));
        for step in steps {
            match step {
                Step::Send(len) if sender.can_send(len) => {
                    let lsn = sender.last_sent().next();
                    sender.sent(lsn, len);
                    prop_assert_eq!(receiver.received(lsn, len), Ok(()));
                }
                Step::Send(_) => {}
                Step::Durable(upto, _) => {
                    let span = receiver.last_received().0 - sender.durable_lsn().0 + 1;
                    let lsn = sender.durable_lsn().0 + upto.index(span as usize) as u64;
                    prop_assert!(sender.acked(receiver.durable(Lsn(lsn))).is_ok());
                }
            }
        }
    }
}

#[test]
fn a_window_that_became_free_always_takes_the_largest_record() {
    let mut window = SendWindow::new(CREDIT_BYTES_MIN, Lsn(0)).unwrap();
    window.sent(Lsn(1), RECORD_BYTES_MAX);
    window.sent(Lsn(2), RECORD_BYTES_MAX);
    assert!(!window.can_send(1));

    assert_eq!(window.acked(ack(1, CREDIT_BYTES_MIN)), Ok(RECORD_BYTES_MAX as u64));

    assert!(window.can_send(RECORD_BYTES_MAX));
}

#[test]
fn acknowledgements_that_cannot_be_are_refused_and_change_nothing() {
    let mut window = window();
    window.sent(Lsn(101), 1000);
    window.sent(Lsn(102), 1000);
    window.acked(ack(101, 4 * MIB)).unwrap();

    let backwards = window.acked(ack(100, 4 * MIB));
    let never_sent = window.acked(ack(103, 4 * MIB));
    let small = window.acked(ack(102, CREDIT_BYTES_MIN - 1));
    let large = window.acked(ack(102, CREDIT_BYTES_MAX + 1));

    assert_eq!(backwards, Err(CreditError::Backwards { before: Lsn(101), now: Lsn(100) }));
    assert_eq!(never_sent, Err(CreditError::NeverSent { acked: Lsn(103), sent: Lsn(102) }));
    assert_eq!(small, Err(CreditError::Window { bytes: CREDIT_BYTES_MIN - 1 }));
    assert_eq!(large, Err(CreditError::Window { bytes: CREDIT_BYTES_MAX + 1 }));
    assert_eq!((window.durable_lsn(), window.in_flight_bytes()), (Lsn(101), 1000));
    assert!(SendWindow::new(0, Lsn(0)).is_err());
}

#[test]
fn an_acknowledgement_may_be_repeated_with_another_window() {
    let mut window = window();
    window.sent(Lsn(101), RECORD_BYTES_MAX);
    window.sent(Lsn(102), RECORD_BYTES_MAX);
    window.sent(Lsn(103), RECORD_BYTES_MAX);

    assert_eq!(window.acked(ack(100, CREDIT_BYTES_MIN)), Ok(0));
    assert!(!window.can_send(1), "the window shrank below what is on its way");
    assert_eq!(window.acked(ack(100, 8 * MIB)), Ok(0));
    assert!(window.can_send(RECORD_BYTES_MAX));
}

#[test]
#[should_panic(expected = "the window is asked before a record is sent")]
fn sending_beyond_the_window_is_our_mistake() {
    let mut window = window();

    window.sent(Lsn(101), 4 * MIB as usize + 1);
}

#[test]
#[should_panic(expected = "records are sent in the order of their LSNs")]
fn sending_out_of_order_is_our_mistake() {
    window().sent(Lsn(102), 100);
}

#[test]
fn the_receiver_refuses_a_sender_that_breaks_the_window_or_the_order() {
    let mut window = ReceiveWindow::new(CREDIT_BYTES_MIN, Lsn(0));
    window.received(Lsn(1), CREDIT_BYTES_MIN as usize).unwrap();

    let gap = window.received(Lsn(3), 80);
    let repeated = window.received(Lsn(1), 80);
    let overrun = window.received(Lsn(2), 80);
    window.durable(Lsn(1));

    assert_eq!(gap, Err(CreditError::Sequence { expected: Lsn(2), found: Lsn(3) }));
    assert_eq!(repeated, Err(CreditError::Sequence { expected: Lsn(2), found: Lsn(1) }));
    let in_flight = CREDIT_BYTES_MIN + 80;
    assert_eq!(overrun, Err(CreditError::Overrun { in_flight, window: CREDIT_BYTES_MIN }));
    assert_eq!(window.received(Lsn(2), 80), Ok(()));
}
