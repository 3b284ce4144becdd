//! What the person at the terminal sees: one line a step, bars for long work, colour only where
//! a terminal shows it.

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// The terminal, or whatever stands in its place.
pub struct Screen {
    colour: bool,
}

impl Default for Screen {
    fn default() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some();
        Screen { colour: std::io::stdout().is_terminal() && !plain }
    }
}

impl Screen {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // Nobody to show it to is no reason to stop a failover half way.
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    /// Announces a step.
    pub fn step(&self, number: usize, name: &str) {
        self.line(&self.paint("1", &format!("\n{number}. {name}")));
    }

    /// Says what was seen.
    pub fn note(&self, text: &str) {
        self.line(&format!("   {text}"));
    }

    /// Says that a check passed.
    pub fn good(&self, text: &str) {
        self.line(&format!("   {} {text}", self.paint("32", "ok")));
    }

    /// Says that a check failed.
    pub fn bad(&self, text: &str) {
        self.line(&format!("   {} {text}", self.paint("31;1", "FAILED")));
    }

    /// Shows the table at the end; on a terminal its verdicts stand out.
    pub fn table(&self, text: &str) {
        let mut lines = String::new();
        for line in text.lines() {
            let painted = match line.trim_start().split_once(' ') {
                Some(("ok", _)) => line.replacen("ok", &self.paint("32", "ok"), 1),
                Some(("FAILED", _)) => line.replacen("FAILED", &self.paint("31;1", "FAILED"), 1),
                _ => line.to_owned(),
            };
            lines.push_str(&painted);
            lines.push('\n');
        }
        self.line(&format!("\n{lines}"));
    }

    /// A bar over `total` bytes; on a terminal only.
    pub fn bar(&self, total: u64, what: &str) -> ProgressBar {
        self.bar_of(total, what, "{bytes} of {total_bytes}")
    }

    /// A bar up to 100 percent; on a terminal only.
    pub fn percent_bar(&self, what: &str) -> ProgressBar {
        self.bar_of(100, what, "{pos} %")
    }

    fn bar_of(&self, total: u64, what: &str, figures: &str) -> ProgressBar {
        if !std::io::stdout().is_terminal() {
            return ProgressBar::hidden();
        }
        // Cleared also when the step fails half way.
        let bar = ProgressBar::new(total.max(1)).with_finish(ProgressFinish::AndClear);
        let style = ["   {msg} [{bar:30}] ", figures, ", {eta} left"].concat();
        if let Ok(style) = ProgressStyle::with_template(&style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar
    }
}

/// Waits until `look` returns something, asking every `every`, at most for `deadline`.
///
/// # Errors
/// What was waited for and for how long, when it did not come; an error of `look` at once.
pub async fn wait_for<T, F, Fut>(
    what: &str,
    deadline: Duration,
    every: Duration,
    mut look: F,
) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if begun.elapsed() > deadline {
            anyhow::bail!("{what} did not happen within {} s", deadline.as_secs());
        }
        tokio::time::sleep(every).await;
    }
}
