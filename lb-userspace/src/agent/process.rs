//! This process as ingress-nginx tells of nginx: read from `/proc` when it is asked.

use std::path::Path;

use crate::model::report::{Metric, MetricKind, Sample};

/// Ticks per second in `/proc` on every Linux that user space has seen (`USER_HZ`).
const TICKS: f64 = 100.0;

/// What the kernel says of a process. What it does not say is not there.
#[derive(Debug, Default, PartialEq)]
struct Process {
    cpu_seconds: Option<f64>,
    started: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    read_bytes: Option<f64>,
    write_bytes: Option<f64>,
    open_files: Option<f64>,
    most_files: Option<f64>,
}

/// Metrics of the calling process.
pub(super) fn metrics() -> Vec<Metric> {
    let proc = Path::new("/proc");
    let text = |path: &str| std::fs::read_to_string(proc.join(path)).unwrap_or_default();
    let limits = text("self/limits");
    let open = std::fs::read_dir(proc.join("self/fd")).map(|files| files.count() as f64).ok();
    let process = read(&text("self/stat"), &text("self/status"), &text("self/io"), &text("stat"));
    report(&Process { open_files: open, most_files: most_files(&limits), ..process })
}

/// The soft limit of `limits` (proc_pid_limits(5)).
fn most_files(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Reads `stat`, `status` and `io` of a process and `stat` of the machine.
fn read(stat: &str, status: &str, io: &str, machine: &str) -> Process {
    // The name of the process stands in brackets and may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // proc_pid_stat(5), counted from the third field, which is the first one here.
    let ticks = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<f64>().ok());
    let value = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let kilobytes = |name| value(status, name).map(|kilobytes| kilobytes * 1024.0);
    let (user, system) = (ticks(14), ticks(15));
    let booted = value(machine, "btime");
    Process {
        cpu_seconds: user.zip(system).map(|(user, system)| (user + system) / TICKS),
        started: booted.zip(ticks(22)).map(|(booted, after)| booted + after / TICKS),
        resident_bytes: kilobytes("VmRSS:"),
        virtual_bytes: kilobytes("VmSize:"),
        read_bytes: value(io, "read_bytes:"),
        write_bytes: value(io, "write_bytes:"),
        ..Process::default()
    }
}

fn report(process: &Process) -> Vec<Metric> {
    let Process { cpu_seconds, started, resident_bytes, virtual_bytes, read_bytes, write_bytes, .. } =
        process;
    let Process { open_files, most_files, .. } = process;
    let metric = |name, help, kind, value: &Option<f64>| {
        let samples = value.iter().map(|value| Sample { suffix: "", labels: Vec::new(), value: *value });
        Metric { name, help, kind, samples: samples.collect() }
    };
    vec![
        metric(
            "nginx_ingress_controller_nginx_process_cpu_seconds_total",
            "CPU time used, in seconds.",
            MetricKind::Counter,
            cpu_seconds,
        ),
        metric(
            "nginx_ingress_controller_nginx_process_oldest_start_time_seconds",
            "When the process began, in seconds since the epoch.",
            MetricKind::Gauge,
            started,
        ),
        metric(
            "nginx_ingress_controller_nginx_process_resident_memory_bytes",
            "Memory in use.",
            MetricKind::Gauge,
            resident_bytes,
        ),
        metric(
            "nginx_ingress_controller_nginx_process_virtual_memory_bytes",
            "Address space in use.",
            MetricKind::Gauge,
            virtual_bytes,
        ),
        metric(
            "nginx_ingress_controller_nginx_process_read_bytes_total",
            "Bytes read from disks.",
            MetricKind::Counter,
            read_bytes,
        ),
        metric(
            "nginx_ingress_controller_nginx_process_write_bytes_total",
            "Bytes written to disks.",
            MetricKind::Counter,
            write_bytes,
        ),
        // By the names that every Prometheus client has for them, ingress-nginx's too.
        metric("process_cpu_seconds_total", "CPU time used, in seconds.", MetricKind::Counter, cpu_seconds),
        metric(
            "process_start_time_seconds",
            "When the process began, in seconds since the epoch.",
            MetricKind::Gauge,
            started,
        ),
        metric("process_resident_memory_bytes", "Memory in use.", MetricKind::Gauge, resident_bytes),
        metric("process_virtual_memory_bytes", "Address space in use.", MetricKind::Gauge, virtual_bytes),
        metric("process_open_fds", "Open files and sockets.", MetricKind::Gauge, open_files),
        metric("process_max_fds", "Files and sockets that may be open.", MetricKind::Gauge, most_files),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_whatever_the_process_is_called() {
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194560 9 0 0 0 250 150 0 0 20 0 4 0 1200 99 5 0 0";
        let status = "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t     512 kB\n";
        let io = "rchar: 9\nwchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";

        assert_eq!(
            read(stat, status, io, "cpu 1 2 3\nbtime 1000\n"),
            Process {
                cpu_seconds: Some(4.0),
                started: Some(1012.0),
                resident_bytes: Some(512.0 * 1024.0),
                virtual_bytes: Some(2048.0 * 1024.0),
                read_bytes: Some(4096.0),
                write_bytes: Some(8192.0),
                ..Process::default()
            }
        );
        assert_eq!(most_files("Limit  Soft  Hard\nMax open files   1024   4096   files\n"), Some(1024.0));
        assert_eq!(most_files("Max open files   unlimited   unlimited   files\n"), None);
        assert_eq!(read("", "", "", ""), Process::default());
    }

    #[test]
    fn this_process_has_used_memory() {
        let metrics = metrics();

        let memory = metrics.iter().find(|metric| metric.name.ends_with("resident_memory_bytes"));
        assert!(memory.is_some_and(|memory| memory.samples.iter().any(|sample| sample.value > 0.0)));
    }
}
