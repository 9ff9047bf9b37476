//! `penstock top`: the busiest VIPs and backends of the live agent, by what they got since the look before.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;

use super::{ask, flags};
use crate::agent::StartError;

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 the end, 2 usage, 68 no live agent, or one without a kernel part.")]
pub(super) struct TopArgs {
    /// Admin address of the live agent
    #[arg(long, value_name = "ADDR:PORT", env = "PENSTOCK_ADMIN", default_value = "127.0.0.1:10254")]
    admin: String,
    /// How often the agent is asked, every 1 to 3600 seconds
    #[arg(long, short, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Looks before it ends [default: until it is interrupted]
    #[arg(long, short = 'n', value_name = "N", value_parser = flags::count::<u64>)]
    count: Option<u64>,
    /// VIPs and backends shown of each
    #[arg(long, short, value_name = "N", default_value_t = 15)]
    lines: usize,
}

/// Shows it until there is nobody to show it to.
pub(super) fn top(args: TopArgs) -> Result<ExitCode, StartError> {
    let TopArgs { admin, interval, count, lines } = args;
    let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    let mut before = look(&admin)?;
    let mut looks = 0;
    while count.is_none_or(|count| looks < count) {
        std::thread::sleep(Duration::from_secs(interval));
        let now = look(&admin)?;
        let page = page(&before, &now, lines);
        let mut stdout = std::io::stdout().lock();
        // The reader (`| head`) has gone.
        if stdout.write_all(format!("{clear}{page}\n").as_bytes()).and_then(|()| stdout.flush()).is_err() {
            break;
        }
        before = now;
        looks += 1;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was counted at a moment.
struct Look {
    at: Instant,
    vips: BTreeMap<String, Totals>,
    backends: BTreeMap<String, Totals>,
}

#[derive(Deserialize)]
struct Status {
    datapath: Option<Datapath>,
}

#[derive(Deserialize)]
struct Datapath {
    vips: Vec<Vip>,
    pools: Vec<Pool>,
}

#[derive(Deserialize)]
struct Vip {
    protocol: String,
    addr: String,
    target: String,
    totals: Totals,
}

#[derive(Deserialize)]
struct Pool {
    pool: String,
    backends: Vec<Backend>,
}

#[derive(Deserialize)]
struct Backend {
    addr: String,
    totals: Totals,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
struct Totals {
    packets: u64,
    bytes: u64,
    flows: u64,
}

fn look(admin: &str) -> Result<Look, StartError> {
    let text = ask(admin, "/status?format=json")?;
    let at = Instant::now();
    let status: Status = serde_json::from_str(&text)
        .map_err(|error| StartError::Live(format!("the agent is of another version: {error}")))?;
    let Some(Datapath { vips, pools }) = status.datapath else {
        return Err(StartError::Live(
            "this agent runs with --datapath off: the kernel balances no flows".to_owned(),
        ));
    };
    let vips = vips.into_iter().filter(|vip| !vip.target.starts_with("proxy "));
    let vips =
        vips.map(|Vip { protocol, addr, target, totals }| (format!("{protocol} {addr}  {target}"), totals));
    let backends = pools.into_iter().flat_map(|Pool { pool, backends }| {
        backends.into_iter().map(move |Backend { addr, totals }| (format!("{addr}  {pool}"), totals))
    });
    Ok(Look { at, vips: vips.collect(), backends: backends.collect() })
}

fn page(before: &Look, now: &Look, lines: usize) -> String {
    let seconds = now.at.saturating_duration_since(before.at).as_secs_f64().max(f64::MIN_POSITIVE);
    let mut page = String::new();
    for (title, before, now) in
        [("vip", &before.vips, &now.vips), ("backend", &before.backends, &now.backends)]
    {
        let _ = writeln!(page, "{:>10} {:>10} {:>10}  {title}", "packets/s", "bits/s", "flows/s");
        for (name, packets, bytes, flows) in busiest(before, now, seconds).into_iter().take(lines) {
            let _ = writeln!(
                page,
                "{:>10} {:>10} {:>10}  {name}",
                short(packets),
                short(8.0 * bytes),
                short(flows)
            );
        }
        page.push('\n');
    }
    page
}

/// Packets, bytes and flows a second of each, the most bytes first. Who is new counts from nothing, and so does who
/// counts anew.
fn busiest<'a>(
    before: &BTreeMap<String, Totals>,
    now: &'a BTreeMap<String, Totals>,
    seconds: f64,
) -> Vec<(&'a str, f64, f64, f64)> {
    let rows = now.iter().map(|(name, now)| {
        let before = before.get(name).copied().unwrap_or_default();
        let rate = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now) as f64 / seconds;
        let packets = rate(now.packets, before.packets);
        (name.as_str(), packets, rate(now.bytes, before.bytes), rate(now.flows, before.flows))
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|left, right| right.2.total_cmp(&left.2).then_with(|| left.0.cmp(right.0)));
    rows
}

/// Three digits and what they are multiples of.
fn short(number: f64) -> String {
    let units = [("G", 1e9), ("M", 1e6), ("k", 1e3)];
    match units.into_iter().find(|(_, unit)| number >= *unit) {
        Some((name, unit)) => format!("{:.1}{name}", number / unit),
        None => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rows: &[(&str, u64)]) -> BTreeMap<String, Totals> {
        let totals = |bytes: u64| Totals { packets: bytes / 100, bytes, flows: 0 };
        rows.iter().map(|(name, bytes)| ((*name).to_owned(), totals(*bytes))).collect()
    }

    #[test]
    fn the_busiest_come_first_and_who_counts_anew_counts_from_nothing() {
        let before = counted(&[("idle", 500), ("busy", 1_000), ("anew", 9_000)]);
        let now = counted(&[("idle", 500), ("busy", 5_000), ("anew", 400), ("new", 200)]);

        let rows = busiest(&before, &now, 2.0);

        let expected =
            [("busy", 20.0, 2000.0), ("anew", 2.0, 200.0), ("new", 1.0, 100.0), ("idle", 0.0, 0.0)];
        assert_eq!(rows.into_iter().map(|row| (row.0, row.1, row.2)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_page_has_vips_and_backends_with_their_rates() {
        let at = Instant::now();
        let none = Look { at, vips: BTreeMap::new(), backends: BTreeMap::new() };
        let now = Look {
            at: at + Duration::from_secs(1),
            vips: counted(&[("tcp 203.0.113.10:80  shop/web", 2_000_000)]),
            backends: counted(&[("10.0.0.1:80  shop/web", 1_500), ("10.0.0.2:80  shop/web", 100)]),
        };

        let page = page(&none, &now, 1);

        let lines: Vec<&str> = page.lines().collect();
        let expected = [
            " packets/s     bits/s    flows/s  vip",
            "     20.0k      16.0M          0  tcp 203.0.113.10:80  shop/web",
            "",
            " packets/s     bits/s    flows/s  backend",
            "        15      12.0k          0  10.0.0.1:80  shop/web",
            "",
        ];
        assert_eq!(lines, expected);
    }
}
