//! The agent beside a real API server that holds many objects: how soon it serves, how soon a change is seen by a
//! client, what it takes in memory and CPU while much changes, and what requests notice of that.

pub mod site;
pub mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::Client;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cluster::Cluster;
use crate::bench_l7::LOAD_CPU;
use crate::bench_l7::paced::{self, Target};
use crate::netns::Lab;
use site::{Agent, Asker, Site};
use world::World;

/// The Ingress whose endpoint is changed and asked for; the storm leaves it alone.
const WATCHED: usize = 7;
/// Changes whose times are looked at.
const CHANGES: usize = 250;
/// Slices that change every second.
const STORM: f64 = 100.0;
/// Length of a measured storm, and of the quiet times and storms with traffic.
const LENGTH: Duration = Duration::from_secs(15);
const TRAFFIC: Duration = Duration::from_secs(5);
const TRAFFIC_ROUNDS: usize = 3;
/// Requests a second, connections they come by and hosts they ask for.
const RATE: f64 = 1000.0;
const CONNECTIONS: usize = 16;
const HOSTS: usize = 50;

/// What is measured, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan<'a> {
    /// Folder with etcd and kube-apiserver.
    pub assets: &'a Path,
    /// How many Ingresses.
    pub ingresses: usize,
    /// Starts of the agent; the median counts.
    pub starts: usize,
    /// With the kernel part.
    pub kernel: bool,
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The most it should be.
    pub goal: Option<f64>,
}

impl Figure {
    /// As a line for people.
    pub fn line(&self) -> String {
        let Self { name, value, unit, goal } = self;
        let goal = match goal {
            Some(goal) if value <= goal => format!("  goal {goal}: met"),
            Some(goal) => format!("  goal {goal}: MISSED"),
            None => String::new(),
        };
        format!("{name:<66} {value:>9.3} {unit:<5}{goal}")
    }

    /// For a program.
    pub fn json(&self) -> Value {
        let Self { name, value, unit, goal } = self;
        json!({"case": name, "value": value, "unit": unit, "goal": goal, "met": goal.map(|goal| *value <= goal)})
    }
}

/// Measures everything, telling each figure as soon as it is known.
pub fn measure(plan: Plan<'_>, tell: &(dyn Fn(&Figure) + Sync)) -> Result<Vec<Figure>> {
    let lab = Lab::new()?;
    let own = format!("{}/24", world::node_address(0));
    let host = lab.host("node", &[("front", &[&own])])?;
    // Processes and threads inherit namespace and CPU of the thread that starts them.
    host.within(|| {
        let mut cpu = CpuSet::new();
        cpu.set(LOAD_CPU);
        sched_setaffinity(None, &cpu).context("pin the load")?;
        let site = Site::new(&host, plan.assets, plan.kernel)?;
        let world = World { ingresses: plan.ingresses };
        let begun = Instant::now();
        site.runtime.block_on(world.fill(&site.client))?;
        println!(
            "{}: {} Ingresses, {} Services, {} endpoints in {} slices, created in {:.0} s; kernel part {}",
            site::versions(plan.assets)?,
            world.ingresses,
            world.services(),
            world.endpoints(),
            world.slices().len(),
            begun.elapsed().as_secs_f64(),
            if plan.kernel { "on" } else { "off" },
        );
        Bench { site: &site, world, tell, figures: Vec::new() }.run(plan.starts)
    })
}

struct Bench<'a> {
    site: &'a Site,
    world: World,
    tell: &'a (dyn Fn(&Figure) + Sync),
    figures: Vec<Figure>,
}

impl Bench<'_> {
    fn run(mut self, starts: usize) -> Result<Vec<Figure>> {
        let agent = self.starts(starts)?;
        let memory = |agent: &Agent| Ok::<_, anyhow::Error>(agent.process.pss_kib()? as f64 / 1024.0);
        self.say("memory after the start (PSS)", memory(&agent)?, "MiB", Some(150.0));
        self.changes("a lone change", 0, false)?;
        self.storm(&agent)?;
        self.changes("a change while 100 slices/s change", 1, true)?;
        self.traffic()?;
        agent.is_at_rest()?;
        self.say("memory after all changes (PSS)", memory(&agent)?, "MiB", Some(150.0));
        Ok(self.figures)
    }

    fn say(&mut self, name: &str, value: f64, unit: &'static str, goal: Option<f64>) {
        let figure = Figure { name: name.to_owned(), value, unit, goal };
        (self.tell)(&figure);
        self.figures.push(figure);
    }

    /// From the start of the process to the first answer of the Ingress that was made last, when all others have
    /// to be answered by their endpoints, too, each asked once. The first start also has status to write.
    fn starts(&mut self, starts: usize) -> Result<Agent> {
        let last = Cluster::host(self.world.ingresses - 1);
        let mut times = Vec::new();
        loop {
            let mut agent = self.site.start()?;
            times.push(agent.serves(&last)?);
            for index in 0..self.world.ingresses {
                let host = Cluster::host(index);
                if Asker::new(&host)?.ask()?.is_none() {
                    bail!("{host} is not served when {last} is:\n{}", agent.process.log());
                }
            }
            let cpu = agent.process.cpu_total()?;
            agent.is_at_rest()?;
            if times.len() >= starts.max(1) {
                times.sort_unstable();
                let median = times[times.len() / 2];
                self.say("from the start to serving, median", median.as_secs_f64(), "s", Some(3.0));
                self.say("the slowest start", times[times.len() - 1].as_secs_f64(), "s", None);
                self.say("CPU time for it and one answer of every host", cpu.as_secs_f64(), "s", None);
                return Ok(agent);
            }
        }
    }

    /// From a patch that is sent to the first answer of the new endpoint.
    fn changes(&mut self, what: &str, series: usize, stormy: bool) -> Result<()> {
        let (world, path) = (self.world, self.world.slice_path(self.world.only_slice(WATCHED)));
        let storm = stormy.then(|| {
            // Longer than the changes take; it ends with them.
            let length = Duration::from_secs(600);
            self.site.runtime.spawn(storm(self.site.client.clone(), world, 20_000, length))
        });
        let mut asker = Asker::new(&Cluster::host(WATCHED))?;
        let (mut seen, mut taken) = (Vec::new(), Vec::new());
        for number in 0..CHANGES {
            let (body, endpoint) = world.single(series * CHANGES + number);
            let (client, path) = (self.site.client.clone(), path.clone());
            let begun = Instant::now();
            let patched = self.site.runtime.spawn(async move {
                let outcome = world::patch(&client, &path, &body).await;
                outcome.map(|()| Instant::now())
            });
            let answered = asker.until(&endpoint)?;
            seen.push(answered - begun);
            taken.push(self.site.runtime.block_on(patched)??.saturating_duration_since(begun));
            // Not in step with anything else; later than any pause after the change before.
            std::thread::sleep(Duration::from_millis(25 + (number as u64 * 7) % 13));
        }
        if let Some(storm) = storm {
            storm.abort();
        }
        let goal = Some(50.0);
        self.say(&format!("{what}, from the PATCH to the new endpoint, p50"), ms(&mut seen, 50), "ms", None);
        self.say(&format!("{what}, from the PATCH to the new endpoint, p99"), ms(&mut seen, 99), "ms", goal);
        self.say(
            "  of which until the API server has answered the PATCH, p50",
            ms(&mut taken, 50),
            "ms",
            None,
        );
        self.say(
            "  of which until the API server has answered the PATCH, p99",
            ms(&mut taken, 99),
            "ms",
            None,
        );
        Ok(())
    }

    fn storm(&mut self, agent: &Agent) -> Result<()> {
        agent.is_at_rest()?;
        let (client, world) = (self.site.client.clone(), self.world);
        let (before, begun) = (agent.process.cpu_total()?, Instant::now());
        let changes = self.site.runtime.block_on(storm(client, world, 0, LENGTH))?;
        let (used, length) = (agent.process.cpu_total()?.saturating_sub(before), begun.elapsed());
        let rate = changes as f64 / length.as_secs_f64();
        self.say("slices changed in a second", rate, "1/s", None);
        let cores = used.as_secs_f64() / length.as_secs_f64();
        self.say("CPU of the agent meanwhile, in cores", cores, "", Some(0.1));
        Ok(())
    }

    /// Requests by the clock in turns, alone and while slices change.
    fn traffic(&mut self) -> Result<()> {
        let hosts: Vec<String> =
            (1..).step_by(2).map(Cluster::host).take(HOSTS.min(self.world.ingresses / 2)).collect();
        let target = Target { port: site::AGENT.port(), hosts: &hosts };
        let load = |length| paced::run(target, RATE, CONNECTIONS, length, site::BODY);
        load(Duration::from_secs(1))?;
        let (mut quiet, mut stormy) = (Vec::new(), Vec::new());
        for round in 0..TRAFFIC_ROUNDS {
            quiet.extend(load(TRAFFIC)?);
            let first = 30_000 + round * 1000;
            let storm = self.site.runtime.spawn(storm(self.site.client.clone(), self.world, first, TRAFFIC));
            stormy.extend(load(TRAFFIC)?);
            self.site.runtime.block_on(storm)??;
        }
        for (what, took) in [("quiet", &mut quiet), ("while 100 slices/s change", &mut stormy)] {
            for percent in [50, 99] {
                let name = format!("requests at {RATE}/s, {what}, p{percent}");
                self.say(&name, ms(took, percent), "ms", None);
            }
        }
        Ok(())
    }
}

/// Changes slices by the clock, each another one, from the `first`th change on; how many.
async fn storm(client: Client, world: World, first: usize, length: Duration) -> Result<usize> {
    let watched = world.only_slice(WATCHED);
    let slices: Arc<Vec<_>> =
        Arc::new(world.slices().into_iter().filter(|slice| *slice != watched).collect());
    let all = (STORM * length.as_secs_f64()) as usize;
    let (begun, mut under_way) = (tokio::time::Instant::now(), JoinSet::new());
    for number in 0..all {
        tokio::time::sleep_until(begun + Duration::from_secs_f64(number as f64 / STORM)).await;
        let (client, slices) = (client.clone(), Arc::clone(&slices));
        under_way.spawn(async move {
            // A prime leads everywhere.
            let slice = slices[(first + number) * 7919 % slices.len()];
            world::patch(&client, &world.slice_path(slice), &world.replaced(slice, first + number)).await
        });
        while let Some(ended) = under_way.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = under_way.join_next().await {
        ended??;
    }
    Ok(all)
}

/// Milliseconds that so many in a hundred do not exceed.
fn ms(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
