//! Processes that are measured: pinned to a CPU, ended with the guard, their CPU time counted.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::eventually;

/// A running server with all its processes. Dropping it ends them.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` on one CPU, with both its outputs in the file `log`. The kernel ends it
    /// with this thread, should this program be killed without a chance to clean up.
    pub fn start(cpu: usize, program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = pinned(cpu, program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Has it ended by itself?
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Empties what it has written: a run with access logs must not fill the disk.
    pub fn forget_log(&self) {
        let _ = File::options().write(true).open(&self.log).and_then(|log| log.set_len(0));
    }

    /// CPU time of all its processes and their threads so far. Threads that have ended are not in
    /// it, so it is only good for servers whose threads stay.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut sum = 0;
        for pid in family(self.child.id()) {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let text = std::fs::read_to_string(task.path().join("schedstat"))?;
                sum += run_time_ns(&text).with_context(|| format!("read schedstat of {pid}: {text:?}"))?;
            }
        }
        Ok(Duration::from_nanos(sum))
    }

    /// CPU time of all its processes with that of threads that have ended, to a hundredth of a second.
    pub fn cpu_total(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in family(self.child.id()) {
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            sum += used(&text).with_context(|| format!("read stat of {pid}: {text:?}"))?;
        }
        Ok(sum)
    }

    /// Resident memory of all its processes in KiB, what several share counted by its share.
    pub fn pss_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in family(self.child.id()) {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum += pss_kib(&text).with_context(|| format!("read smaps_rollup of {pid}: {text:?}"))?;
        }
        Ok(sum)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let family = family(self.child.id());
        signal(self.child.id(), Signal::TERM);
        if eventually(Duration::from_secs(3), || self.has_ended().then_some(())).is_none() {
            // Children first: they must not be left to init.
            family.iter().rev().for_each(|pid| signal(*pid, Signal::KILL));
        }
        let _ = self.child.wait();
    }
}

/// A command that runs on this CPU only and ends with the thread that starts it.
pub fn pinned(cpu: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpu.to_string(), "setpriv", "--pdeathsig", "TERM"]).arg(program);
    command
}

/// Sends a signal; a process that is gone is none to worry about.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// A process and all that descend from it, parents first.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next).copied() {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

/// Ticks of one CPU since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    all: u64,
    idle: u64,
}

impl Ticks {
    /// Those of `cpu` until now.
    pub fn now(cpu: usize) -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Self::read(&stat, cpu).with_context(|| format!("no CPU {cpu} in /proc/stat"))
    }

    /// Time stolen by the host counts as busy: nobody here could use it.
    fn read(stat: &str, cpu: usize) -> Option<Self> {
        let name = format!("cpu{cpu}");
        let line = stat.lines().find(|line| line.split_whitespace().next() == Some(&name))?;
        // user nice system idle iowait irq softirq steal; what follows is in user already.
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map_while(|n| n.parse().ok()).collect();
        Some(Self { all: ticks.iter().sum(), idle: ticks.get(3)? + ticks.get(4)? })
    }

    /// Share of the time since `before` in which the CPU had something to do.
    pub fn busy_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        all.saturating_sub(self.idle.saturating_sub(before.idle)) as f64 / all as f64
    }
}

/// The line `Pss:` of a smaps_rollup file.
fn pss_kib(smaps: &str) -> Option<u64> {
    smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// User and system time of a stat file. The name in it may hold anything, but ends with the last bracket.
fn used(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    // USER_HZ, which is 100 wherever we run.
    Some(Duration::from_millis(10 * ticks))
}

/// First number of a schedstat file: nanoseconds on a CPU.
fn run_time_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_the_cpu_is_the_first_number() {
        assert_eq!(run_time_ns("1565310 223096 2\n"), Some(1_565_310));
        assert_eq!(run_time_ns(""), None);
    }

    #[test]
    fn cpu_time_is_that_of_user_and_system() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 25 9 9 20 0 1 0 5 6 7\n";

        assert_eq!(used(stat), Some(Duration::from_millis(1750)));
        assert_eq!(used("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_the_share_of_what_is_shared() {
        assert_eq!(pss_kib("Rss:   90 kB\nPss:                1234 kB\nPss_Anon: 5 kB\n"), Some(1234));
        assert_eq!(pss_kib("Rss: 90 kB\n"), None);
    }

    #[test]
    fn a_cpu_is_busy_while_it_is_not_idle() {
        let before = Ticks::read("cpu  0 0 0 0\ncpu0 100 0 50 800 10 0 0 0 0 0\n", 0).unwrap();
        let after = Ticks::read("cpu  0 0 0 0\ncpu0 120 0 55 860 20 0 0 5 9 0\n", 0).unwrap();

        assert_eq!(after.busy_since(before), 0.3);
        assert_eq!(Ticks::read("cpu  0 0 0 0\n", 0), None);
    }

    #[test]
    fn family_has_the_process_and_its_children() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();

        let family = family(std::process::id());

        assert_eq!(family.first(), Some(&std::process::id()));
        assert!(family.contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
