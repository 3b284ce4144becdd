//! Random histories of one item against the model: partial layers, timelines, restarts, expiry.

use crate::world::{EAGER, World, check_block_hashes};
use leeward_model::Position;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Move {
    Append(u8),
    Point,
    Progress,
    Seal,
    Index,
    Resend(u8),
    BranchHere,
    BranchBack(u8),
    Fence,
    Expire,
    Pin,
    Unpin,
    Keep,
    Retire,
    Restart,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => (1..6_u8).prop_map(Move::Append),
        4 => Just(Move::Point),
        1 => Just(Move::Progress),
        2 => Just(Move::Seal),
        2 => Just(Move::Index),
        1 => (0..4_u8).prop_map(Move::Resend),
        1 => Just(Move::BranchHere),
        1 => any::<u8>().prop_map(Move::BranchBack),
        1 => Just(Move::Fence),
        2 => Just(Move::Expire),
        1 => Just(Move::Pin),
        1 => Just(Move::Unpin),
        1 => Just(Move::Keep),
        1 => Just(Move::Retire),
        1 => Just(Move::Restart),
    ]
}

fn go(world: &mut World, step: Move) {
    match step {
        Move::Append(count) => (0..count).for_each(|_| world.append().map(|_| ()).unwrap()),
        Move::Point => world.commit_point().map(|_| ()).unwrap(),
        Move::Progress => {
            world.sync().unwrap();
            world.commit_progress().unwrap();
        }
        Move::Seal => world.seal().unwrap(),
        Move::Index => drop(world.index().unwrap()),
        Move::Resend(back) => resend(world, back),
        Move::BranchHere => {
            world.branch_off().unwrap();
            world.lose_session();
        }
        Move::BranchBack(pick) => {
            let points = &world.reader().state().points;
            let place: Position = points[usize::from(pick) % points.len()].position;
            let old = world.branch.timeline;
            world.open_branch(Some(place)).unwrap();
            let head = world.model.head(old);
            world.model.forget_from(old, head.next());
        }
        Move::Fence => world.raise_fence().unwrap(),
        Move::Expire => world.expire().unwrap(),
        Move::Pin => world.pin_newest().unwrap(),
        Move::Unpin => {
            if let Some((pin, point)) = world.pins.pop() {
                world.reader().unpin(pin).unwrap();
                *world.model.pins.get_mut(&point).unwrap() -= 1;
            }
        }
        Move::Keep => world.add_kept().unwrap(),
        Move::Retire => world.retire().unwrap(),
        Move::Restart => world.restart().unwrap(),
    }
}

/// A broken session: what was not committed may come again, from any of its records on.
fn resend(world: &mut World, back: u8) {
    let head = world.model.head(world.branch.timeline);
    let from = world.received.0.saturating_sub(back.into()).max(head.0);
    world.begin_at(leeward_model::Lsn(from + 1)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    /// What a source compares with: the block hashes of a head without a point, and of points.
    #[test]
    fn block_hashes_are_those_of_what_the_model_says(
        seed in 1..1_000_000_u64,
        steps in prop::collection::vec(moves(), 1..20),
    ) {
        let (_, mut world) = World::on_crash_disk(seed);
        for step in steps {
            go(&mut world, step);
        }
        let mut places: Vec<_> = world.reader().state().points.iter().map(|p| p.position).collect();
        places.push(world.place(world.model.head(world.branch.timeline)));
        for place in places {
            let checked = check_block_hashes(world.reader(), &world.model, place);
            prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
        }
    }

    /// E11, I1, I10: after every step every listed point, pinned place and kept base reads as the
    /// model says, whatever was expired or collected.
    #[test]
    fn every_listed_point_reads_as_the_model_says(
        seed in 1..1_000_000_u64,
        steps in prop::collection::vec(moves(), 1..40),
        eager in any::<bool>(),
    ) {
        let (_, mut world) = World::on_crash_disk(seed);
        if eager {
            world.set_upkeep(EAGER);
        }
        for step in steps {
            go(&mut world, step);
            let listed: Vec<_> = world.reader().state().points.iter().map(|p| p.id).collect();
            prop_assert_eq!(listed.len(), world.model.points.len());
            for (point, count) in &world.model.pins {
                prop_assert!(*count == 0 || world.model.points.contains_key(point));
            }
            if let Err(why) = world.check_contents() {
                prop_assert!(false, "{:?}: {}", step, why);
            }
        }
    }
}
