//! Tables for people: plain, aligned, coloured only on terminals. Knows nothing of the API.

/// Whether escape codes for colours are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Never.
    Off,
    /// Heads are bold, bad news is red, good news green.
    On,
}

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// Words that colour the cell they stand in.
const MOODS: [(&str, &[&str]); 3] = [
    (RED, &["Critical", "Failed", "Disconnected", "BOTH", "UNKNOWN", "BROKEN"]),
    (GREEN, &["Normal", "Succeeded", "Connected", "Protected", "Verified"]),
    (YELLOW, &["Warning", "Suspended", "Cancelled"]),
];

fn mood(cell: &str) -> Option<&'static str> {
    MOODS.iter().find(|(_, words)| words.contains(&cell)).map(|(colour, _)| *colour)
}

/// Text of a cell without what would break a line or a terminal.
fn clean(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Writes rows under their heads, columns two blanks apart, no blanks at the ends of lines.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>], colour: Colour) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    line(&mut out, &heads, &widths, |_| (colour == Colour::On).then_some(BOLD));
    for row in &rows {
        line(&mut out, row, &widths, |cell| if colour == Colour::On { mood(cell) } else { None });
    }
    out
}

fn line(
    out: &mut String,
    cells: &[String],
    widths: &[usize],
    colour: impl Fn(&str) -> Option<&'static str>,
) {
    let last = cells.len().saturating_sub(1);
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        match colour(cell) {
            Some(code) => out.push_str(&format!("{code}{cell}{RESET}")),
            None => out.push_str(cell),
        }
        if index < last {
            let blanks = width.saturating_sub(cell.chars().count()) + 2;
            out.push_str(&" ".repeat(blanks));
        }
    }
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

/// Writes one object, a line a field; fields without a value are left out.
pub(crate) fn fields(pairs: &[(&str, String)], colour: Colour) -> String {
    let shown = pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown.clone().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in shown {
        let value = clean(value);
        let value = match (colour, mood(&value)) {
            (Colour::On, Some(code)) => format!("{code}{value}{RESET}"),
            _ => value,
        };
        out.push_str(&format!("{name:width$}  {value}\n"));
    }
    out
}

/// Bytes for people: three digits and a binary unit.
pub(crate) fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_the_end() {
        let rows = vec![vec!["web01".into(), "Protected".into()], vec!["ä".into(), String::new()]];

        let text = table(&["NAME", "STATE"], &rows, Colour::Off);

        assert_eq!(text, "NAME   STATE\nweb01  Protected\nä\n");
    }

    #[test]
    fn colours_are_written_only_when_asked_for() {
        let rows = vec![vec!["Critical".to_owned(), "x".to_owned()]];

        let plain = table(&["A", "B"], &rows, Colour::Off);
        let coloured = table(&["A", "B"], &rows, Colour::On);

        assert!(!plain.contains('\x1b'));
        assert!(coloured.contains("\x1b[31mCritical\x1b[0m  x\n"), "{coloured:?}");
        assert!(!fields(&[("a", "Critical".into())], Colour::Off).contains('\x1b'));
    }

    #[test]
    fn a_value_from_the_server_cannot_write_escape_codes() {
        let rows = vec![vec!["a\x1b[2Jb\nc".to_owned()]];

        let text = table(&["A"], &rows, Colour::Off);

        assert_eq!(text, "A\na [2Jb c\n");
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3.0 * (1u64 << 30) as f64), "3.0 GiB");
    }
}
