//! `leeward store pin` and `unpin`: people keep a point's data, and let them go again. What was
//! taken off, by whom and why, stays in the store; `stats` lists it.

use super::{Failure, find, place::PlaceOptions, print, print_json, problem};
use crate::{cli::Output, roles::host::clock::wall_now};
use leeward_model::Code;
use leeward_replica::{Pin, StoreError};
use serde_json::json;
use uuid::Uuid;

/// What stands before a person's name in a pin: other pins are those of running machines, exports
/// and tools.
const PERSON: &str = "person ";

/// Which point to keep.
#[derive(Clone, Debug, clap::Args)]
pub struct PinOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// The item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: String,
    /// The point: its id, its name, or `latest`.
    #[arg(long, value_name = "POINT")]
    point: String,
    /// Why, for those who find the pin later.
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Who; without it the user that runs this.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

/// Which pins to take off.
#[derive(Clone, Debug, clap::Args)]
pub struct UnpinOptions {
    #[command(flatten)]
    pin: PinOptions,
    /// Only this pin, by its id.
    #[arg(long, value_name = "ID")]
    pin_id: Option<Uuid>,
    /// Also pins that a machine, an export or a tool has put: whatever reads the point then fails
    /// once it expires.
    #[arg(long)]
    although_it_is_in_use: bool,
}

fn person(who: Option<&String>) -> String {
    let user = || std::env::var("USER").unwrap_or_else(|_| "unknown".into());
    format!("{PERSON}{}", who.cloned().unwrap_or_else(user))
}

fn check_why(why: &str) -> Result<(), Failure> {
    if why.trim().is_empty() {
        return Err(problem(Code::BAD_REQUEST, "the pin was not changed", "--why says nothing"));
    }
    Ok(())
}

pub(super) fn pin(options: &PinOptions, output: Output) -> Result<(), Failure> {
    check_why(&options.why)?;
    let place = &options.place;
    let store = place.open()?;
    let mut known = find::item(place, &store, &options.item)?;
    let point = known.point(&options.point)?;
    let who = person(options.who.as_ref());
    let fail = |error: StoreError| place.failed("did not take the pin", &error);
    let pin = known.reader.pin(point.id, &who, &options.why, wall_now()).map_err(fail)?;
    match output {
        Output::Json => print_json(&json!({"pin": pin.id, "point": pin.point})),
        Output::Table => print(&format!("point {} is kept: pin {}\n", pin.point, pin.id)),
    }
    Ok(())
}

pub(super) fn unpin(options: &UnpinOptions, output: Output) -> Result<(), Failure> {
    let asked = &options.pin;
    check_why(&asked.why)?;
    let place = &asked.place;
    let store = place.open()?;
    let known = find::item(place, &store, &asked.item)?;
    let point = known.point(&asked.point)?;
    let fail = |error: StoreError| place.failed("did not let the pin go", &error);
    let mut pins: Vec<Pin> = known.reader.pins().map_err(fail)?;
    pins.retain(|pin| pin.point == point.id && options.pin_id.is_none_or(|id| id == pin.id));
    let what = || format!("no pin of point {} was taken off", point.id);
    if pins.is_empty() {
        return Err(problem(Code::NOT_FOUND, what(), "there is none"));
    }
    let (people, used): (Vec<Pin>, Vec<Pin>) =
        pins.into_iter().partition(|pin| pin.who.starts_with(PERSON));
    if people.is_empty() && !options.although_it_is_in_use {
        let users: Vec<_> = used.iter().map(|pin| format!("{}: {}", pin.who, pin.why)).collect();
        let cause =
            format!("it is in use; --although-it-is-in-use forces it ({})", users.join("; "));
        return Err(problem(Code::NOT_POSSIBLE_NOW, what(), cause));
    }
    let who = person(asked.who.as_ref());
    let mut gone = Vec::new();
    let forced = used.into_iter().filter(|_| options.although_it_is_in_use);
    for pin in people.into_iter().chain(forced) {
        let taken = known.reader.take_off_pin(pin.id, &who, &asked.why, wall_now());
        if taken.map_err(fail)? {
            gone.push(pin.id);
        }
    }
    match output {
        Output::Json => print_json(&json!({"point": point.id, "unpinned": gone})),
        Output::Table => {
            print(&format!("{} pins of point {} were taken off\n", gone.len(), point.id));
        }
    }
    Ok(())
}
