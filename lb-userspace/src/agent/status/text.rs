//! The state of the live agent for people: a table for each part that has something in it.

use std::fmt::{self, Display};

use super::{AnnouncedStatus, Holder, LeaseStatus, ProblemStatus, Status};
use crate::datapath;
use crate::datapath::exhaustion::Fullest;
use crate::datapath::kernel::Translated;
use crate::model::Severity;

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "penstock {}, up {} s, {} (snapshot {}, {} s old)",
            self.version, self.uptime_seconds, self.manifests, self.generation, self.snapshot_age_seconds
        )?;
        if let Some(age) = self.cluster_age_seconds {
            writeln!(f, "the API server last confirmed what is known of the cluster {age} s ago")?;
        }
        match &self.lease {
            None => {}
            Some(LeaseStatus { name, is_us: true, .. }) => {
                writeln!(f, "status and Events are written by this agent, which holds the Lease {name}")?;
            }
            Some(LeaseStatus { name, holder, .. }) if holder.is_empty() => {
                writeln!(f, "status and Events are not written: nobody is known to hold the Lease {name}")?;
            }
            Some(LeaseStatus { name, holder, .. }) => {
                writeln!(f, "status and Events are written by {holder}, which holds the Lease {name}")?;
            }
        }
        let listeners = self.listeners.iter().map(|l| vec![l.scheme.to_owned(), l.addr.to_string()]);
        section(f, "listeners", &["scheme", "address"], listeners)?;
        match &self.datapath {
            Some(datapath) => fmt_datapath(f, datapath)?,
            None => writeln!(f, "\ndatapath off: the kernel balances nothing")?,
        }
        self.announced.iter().try_for_each(|link| fmt_announced(f, link))?;
        let routes = self.routes.iter().map(|r| {
            let tls = if r.tls { "tls" } else { "" };
            vec![
                r.host.clone(),
                r.path.clone(),
                r.path_type.to_owned(),
                tls.to_owned(),
                r.action.clone(),
                r.ingress.clone(),
            ]
        });
        section(f, "routes", &["host", "path", "type", "", "to", "ingress"], routes)?;
        let upstreams = self.upstreams.iter().map(|u| {
            let endpoints: Vec<String> = u.endpoints.iter().map(ToString::to_string).collect();
            vec![
                u.name.clone(),
                if endpoints.is_empty() { "none (503)".to_owned() } else { endpoints.join(" ") },
                u.check.clone(),
            ]
        });
        section(f, "upstreams", &["name", "endpoints", "checked by"], upstreams)?;
        let unwell = self.upstreams.iter().flat_map(|u| {
            u.unwell.iter().map(|unwell| {
                let since = format!("{} s ago", unwell.since_seconds);
                vec![u.name.clone(), unwell.endpoint.to_string(), unwell.fault.clone(), since]
            })
        });
        section(f, "unwell endpoints", &["of", "endpoint", "why", "since"], unwell)?;
        let failing = self.upstreams.iter().flat_map(|u| {
            u.failing.iter().map(|failing| {
                let ejected = failing.ejected.as_ref().map_or_else(
                    || "no".to_owned(),
                    |e| format!("since {} s, for {} s more", e.since_seconds, e.left_seconds),
                );
                let last = format!("{} s ago", failing.last_seconds);
                let count = failing.failed_attempts.to_string();
                vec![
                    u.name.clone(),
                    failing.endpoint.to_string(),
                    failing.cause.clone(),
                    count,
                    last,
                    ejected,
                ]
            })
        });
        let header = ["of", "endpoint", "why", "attempts", "last", "ejected"];
        section(f, "failing endpoints", &header, failing)?;
        let certificates =
            self.certificates.iter().map(|c| vec![c.host.clone(), c.secret.clone(), c.expiry.clone()]);
        section(f, "certificates", &["host", "secret", "expires in"], certificates)?;
        let kept = self.last_good.iter();
        let kept = kept.map(|kept| vec![kept.object.clone(), format!("{} s ago", kept.since_seconds)]);
        section(f, "last good versions in force", &["object", "since"], kept)?;
        self.fmt_problems(f)
    }
}

impl Status {
    fn fmt_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.problems.is_empty() {
            return writeln!(f, "\nno problems");
        }
        writeln!(f, "\nproblems")?;
        for severity in [Severity::Error, Severity::Warning, Severity::Info] {
            for problem in self.problems.iter().filter(|p| p.severity == severity.to_string()) {
                let ProblemStatus { object, severity, reason: _, field, message, fix } = problem;
                let at = if field.is_empty() { String::new() } else { format!("{field}: ") };
                writeln!(f, "  {severity:<8} {object}: {at}{message}")?;
                if !fix.is_empty() {
                    writeln!(f, "           fix: {fix}")?;
                }
            }
        }
        Ok(())
    }
}

fn fmt_datapath(f: &mut fmt::Formatter<'_>, datapath: &datapath::Status) -> fmt::Result {
    let interfaces = datapath
        .interfaces
        .iter()
        .map(|(name, attached)| vec![name.clone(), format!("{attached:?}").to_lowercase()]);
    section(f, "interfaces", &["name", "xdp"], interfaces)?;
    let tables = &datapath.tables;
    let (made, stay) = (
        if tables.adopted { "taken over from the agent before" } else { "made by this agent" },
        if tables.pinned { "pinned" } else { "not pinned" },
    );
    writeln!(f, "\ntables {made}, {} s old, {stay}", tables.age_seconds)?;
    let vips = datapath.vips.iter().map(|v| {
        vec![
            v.protocol.clone(),
            v.addr.to_string(),
            v.target.clone(),
            v.totals.packets.to_string(),
            v.totals.bytes.to_string(),
            v.totals.flows.to_string(),
        ]
    });
    section(f, "vips", &["", "address", "to", "packets", "bytes", "flows"], vips)?;
    let pools = datapath.pools.iter().map(|p| {
        vec![
            p.pool.clone(),
            p.slots.to_string(),
            p.contested.to_string(),
            p.backends.len().to_string(),
            p.totals.packets.to_string(),
            p.totals.bytes.to_string(),
        ]
    });
    section(f, "pools", &["service port", "slots", "contested", "backends", "packets", "bytes"], pools)?;
    let backends = datapath.pools.iter().flat_map(|pool| {
        pool.backends.iter().map(|b| {
            vec![
                pool.pool.clone(),
                b.addr.to_string(),
                b.mode.to_owned(),
                if b.draining { "draining".to_owned() } else { b.weight.to_string() },
                b.next_hop.clone(),
                b.totals.packets.to_string(),
                b.totals.bytes.to_string(),
                b.totals.flows.to_string(),
            ]
        })
    });
    let header = ["of", "address", "mode", "weight", "next hop", "packets", "bytes", "flows"];
    section(f, "backends", &header, backends)?;
    let verdicts = datapath.verdicts.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string()]);
    section(f, "verdicts", &["name", "packets"], verdicts)?;
    let events = datapath.events.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string()]);
    section(f, "events", &["name", "times"], events)?;
    let (used, size) = datapath.flow_table;
    let Translated { nat, local, fullest } = datapath.translated_flows;
    write!(f, "\n{used} of {size} flows remembered, {} translated ({local} to this host", nat + local)?;
    if let Some(Fullest { backend, flows }) = fullest {
        write!(f, "; {flows} of {} nat ports towards {backend}", datapath.nat_ports)?;
    }
    writeln!(f, ")")
}

fn fmt_announced(f: &mut fmt::Formatter<'_>, link: &AnnouncedStatus) -> fmt::Result {
    let AnnouncedStatus { interface, trouble, members, addresses } = link;
    if trouble.is_empty() && members.is_empty() {
        writeln!(f, "\nannounced on {interface} by nobody yet: this agent listens first")?;
    } else if trouble.is_empty() {
        writeln!(f, "\nannounced on {interface} by {}", members.join(" "))?;
    } else {
        writeln!(f, "\nnothing is announced on {interface}: {trouble}")?;
    }
    let rows = addresses.iter().map(|Holder { address, by, former }| {
        let by = if by.is_empty() { "nobody can" } else { by };
        vec![address.to_string(), by.to_owned(), former.clone()]
    });
    // The last column is for those that have moved here alone.
    let header = if addresses.iter().any(|holder| !holder.former.is_empty()) {
        &["address", "held by", "before by"][..]
    } else {
        &["address", "held by"]
    };
    section(f, &format!("addresses on {interface}"), header, rows)
}

/// A titled table with aligned columns; nothing where there are no rows.
fn section(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> fmt::Result {
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    writeln!(f, "\n{title}")?;
    writeln!(f, "  {}", line(&mut header.iter().copied()))?;
    for row in &rows {
        writeln!(f, "  {}", line(&mut row.iter().map(String::as_str)))?;
    }
    Ok(())
}
