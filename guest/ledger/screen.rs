//! The picture on the text console: two different records give two different pictures.

use std::fs::OpenOptions;
use std::io::Write;
use std::thread;
use std::time::Duration;

use crate::{Shared, State};

/// The display is redrawn at most four times a second.
const FRAME_PERIOD: Duration = Duration::from_millis(250);
/// The first frame and then one in ten seconds begins with an empty screen.
const FRAMES_PER_CLEAR: u32 = 40;

/// Draws the newest record on the text console; a machine without a display goes without.
pub(crate) fn show(shared: &Shared) {
    let Ok(mut screen) = OpenOptions::new().write(true).open("/dev/tty0") else { return };
    let mut drawn = String::new();
    let mut frames = 0u32;
    loop {
        let state = shared.lock().clone();
        let picture = picture(&state);
        // The picture depends on the records only, so an idle ledger costs nothing here.
        if picture != drawn {
            // The kernel may have written between the lines.
            let clear = if frames.is_multiple_of(FRAMES_PER_CLEAR) { "\x1b[0m\x1b[2J" } else { "" };
            frames = frames.wrapping_add(1);
            if screen.write_all(format!("{clear}{picture}").as_bytes()).is_err() {
                return;
            }
            drawn = picture;
        }
        thread::sleep(FRAME_PERIOD);
    }
}

const DIGIT_ROWS: usize = 5;
/// Three pixels by five, a row an octal digit, from the top.
const DIGITS: [[u8; DIGIT_ROWS]; 10] = [
    [7, 5, 5, 5, 7],
    [2, 6, 2, 2, 7],
    [7, 1, 7, 4, 7],
    [7, 1, 7, 1, 7],
    [5, 5, 7, 1, 1],
    [7, 4, 7, 1, 7],
    [7, 4, 7, 5, 7],
    [7, 1, 1, 2, 2],
    [7, 5, 7, 5, 7],
    [7, 5, 7, 1, 7],
];

fn pixel_row(digit: u8, row: usize) -> u8 {
    DIGITS[usize::from(digit - b'0')][row]
}

/// Seventy cells and the margins fill a line of eighty.
const BAR_CELLS: u64 = 70;

/// The whole screen as escape sequences for an 80 by 25 text console.
pub(crate) fn picture(state: &State) -> String {
    let (verdict, color) = match (state.damaged, state.paused) {
        (true, _) => ("DAMAGED: THE DISKS CONTRADICT EACH OTHER", 41),
        (false, true) => ("checked at boot: ok     PAUSED", 43),
        (false, false) => ("checked at boot: ok     running", 42),
    };
    let mut text = format!(
        "\x1b[?25l\x1b[1;1H\x1b[0;1;37;44m{:<80}\x1b[0m\x1b[3;6Hnewest record on both disks",
        "     LEEWARD LEDGER"
    );
    for row in 0..DIGIT_ROWS {
        text += &format!("\x1b[{};6H", 5 + row);
        for digit in format!("{:08}", state.seq_b).bytes() {
            let pixels = pixel_row(digit, row);
            for bit in [4, 2, 1] {
                text += if pixels & bit != 0 { "\x1b[46m  \x1b[0m" } else { "  " };
            }
            text += "  ";
        }
    }
    let lit = state.seq_b % BAR_CELLS;
    text += &format!("\x1b[12;6Hwritten at  {} UTC", civil_time(state.wall_ns));
    text += &format!(
        "\x1b[15;6H\x1b[{color}m{:lit$}\x1b[0;47m{:rest$}\x1b[0m",
        "",
        "",
        lit = lit as usize,
        rest = (BAR_CELLS - lit) as usize
    );
    text += &format!("\x1b[18;6H{verdict:<60}\x1b[20;6Hstart number {}\x1b[K", state.boot);
    text
}

/// `2026-01-31 23:59:58.123` of nanoseconds since 1970, in the Gregorian calendar.
pub(crate) fn civil_time(wall_ns: u64) -> String {
    let (seconds, millis) = (wall_ns / 1_000_000_000, wall_ns / 1_000_000 % 1000);
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02}.{millis:03}", days + 1)
}
