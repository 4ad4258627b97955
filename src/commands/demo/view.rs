//! The live view: a bar for each provider on a terminal, a line a second elsewhere.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How one provider's transactions stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// All of the demo's, inserted or not.
    pub(super) total: u64,
    /// Final or parked.
    pub(super) settled: u64,
    /// Those that wait for payer or merchant.
    pub(super) waiting: u64,
    /// Requests that the simulator saw so far.
    pub(super) requests: u64,
}

/// Where it is shown.
pub(super) struct View {
    begun: Instant,
    shown: Instant,
    before: Vec<u64>,
    form: Form,
}

enum Form {
    Bars { _all: MultiProgress, bars: Vec<ProgressBar> },
    Lines,
}

/// On a terminal a rate is shown anew this often; without one a line is.
const LINE_EVERY: Duration = Duration::from_secs(1);

impl View {
    /// A view of the providers named.
    pub(super) fn open(providers: &[&'static str]) -> Self {
        let form = if io::stdout().is_terminal() { bars(providers) } else { Form::Lines };
        let now = Instant::now();
        Self { begun: now, shown: now, before: vec![0; providers.len()], form }
    }

    /// Shows how they stand, in the order in which they were named.
    pub(super) fn show(&mut self, providers: &[&'static str], standings: &[Standing]) -> io::Result<()> {
        if let Form::Bars { bars, .. } = &self.form {
            for (bar, standing) in bars.iter().zip(standings) {
                bar.set_length(standing.total);
                bar.set_position(standing.settled);
            }
        }
        let elapsed = self.shown.elapsed();
        if elapsed < LINE_EVERY {
            return Ok(());
        }
        self.shown = Instant::now();
        let rate = |requests: u64, before: u64| (requests.saturating_sub(before)) as f64 / elapsed.as_secs_f64();
        let rates: Vec<f64> =
            standings.iter().zip(&self.before).map(|(standing, before)| rate(standing.requests, *before)).collect();
        self.before = standings.iter().map(|standing| standing.requests).collect();
        match &self.form {
            Form::Bars { bars, .. } => {
                for ((bar, standing), rate) in bars.iter().zip(standings).zip(rates) {
                    bar.set_message(told(standing, rate));
                }
                Ok(())
            }
            Form::Lines => writeln!(io::stdout(), "{}", line(self.begun.elapsed(), providers, standings, rates.iter().sum())),
        }
    }

    /// Leaves the last state on the screen.
    pub(super) fn close(self) {
        if let Form::Bars { bars, .. } = self.form {
            bars.iter().for_each(ProgressBar::abandon);
        }
    }
}

fn bars(providers: &[&'static str]) -> Form {
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
    let style = ProgressStyle::with_template("{prefix:<10} {bar:30.green/dim} {pos:>5}/{len:<5} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─");
    let bar = |name: &&'static str| all.add(ProgressBar::new(1).with_style(style.clone()).with_prefix(*name));
    let bars = providers.iter().map(bar).collect();
    Form::Bars { _all: all, bars }
}

fn told(standing: &Standing, rate: f64) -> String {
    let mut text = format!("{rate:>5.1} polls/s");
    if standing.waiting > 0 {
        // Writing to a string cannot fail.
        _ = write!(text, ", {} wait for an action", standing.waiting);
    }
    text
}

fn line(elapsed: Duration, providers: &[&'static str], standings: &[Standing], rate: f64) -> String {
    let mut line = format!("{:>4} s", elapsed.as_secs());
    for (provider, standing) in providers.iter().zip(standings) {
        _ = write!(line, "  {provider} {}/{}", standing.settled, standing.total);
    }
    _ = write!(line, "  {rate:.1} polls/s");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_every_provider_is() {
        let standing = Standing { total: 50, settled: 12, waiting: 1, requests: 30 };
        let line = line(Duration::from_millis(3_400), &["khalti", "dapi"], &[standing, Standing::default()], 11.26);
        assert_eq!(line, "   3 s  khalti 12/50  dapi 0/0  11.3 polls/s");
        assert_eq!(told(&standing, 2.0), "  2.0 polls/s, 1 wait for an action");
    }
}
