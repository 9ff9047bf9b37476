//! Why the kernel refused a program or a map, in a line that an operator can act on. aya keeps the error number in
//! the depth of its errors, and the verifier's words are pages long.

use std::error::Error;
use std::io;

use aya::maps::MapError;
use aya::programs::ProgramError;
use lb_common::maps::row;

const PERMISSION: &str = "needs root or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

/// What the kernel accounts for all maps but the counters: `memlock` of all of them, less the counters of that host's CPUs.
const MAPS_BYTES: usize = 80_000_000;

/// The cause with its error number, and what would help where that is known.
pub(in crate::datapath) fn told(error: &(dyn Error + 'static)) -> String {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    told_on(error, &rustix::system::uname().release().to_string_lossy(), cpus)
}

/// The same on a kernel of this release that may have so many CPUs.
fn told_on(error: &(dyn Error + 'static), release: &str, cpus: usize) -> String {
    let mut text = error.to_string();
    let mut number = None;
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(ProgramError::LoadError { io_error, verifier_log }) = current.downcast_ref() {
            let log = verifier_log.to_string();
            let said = last_words(&log);
            text = format!("{io_error}{}{said}", if said.is_empty() { "" } else { ": " });
            number = io_error.raw_os_error();
            break;
        }
        // It hides itself among its causes.
        let io_error = match current.downcast_ref() {
            Some(MapError::IoError(error)) => Some(error),
            _ => current.downcast_ref::<io::Error>(),
        };
        if let Some(io_error) = io_error {
            let said = io_error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            number = io_error.raw_os_error().or(number);
        }
        next = current.source();
    }
    let kernel = format!("Linux 6.1 or newer (this is {release}; --datapath off serves HTTP and TLS on any)");
    match number {
        // The verifier, which without CAP_PERFMON forbids more; or a security module.
        Some(libc::EACCES) => format!("{text}; {PERMISSION}, and {kernel}"),
        // 5.15 and 5.19 say E2BIG to a map of one value of 30 MB.
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::E2BIG) => {
            format!("{text}; needs {kernel}")
        }
        Some(libc::ENOMEM) => format!("{text}; {}", memory(cpus)),
        _ => match number.map_or("", hint) {
            "" => text,
            hint => format!("{text}; {hint}"),
        },
    }
}

fn hint(number: i32) -> &'static str {
    match number {
        libc::EPERM => PERMISSION,
        libc::EMFILE | libc::ENFILE => {
            "more open files are needed: raise the limit (ulimit -n, LimitNOFILE=)"
        }
        _ => "",
    }
}

/// What the maps take, which no setting changes.
fn memory(cpus: usize) -> String {
    // The agent has a row of counters, too.
    let rows = cpus.saturating_add(1);
    let megabytes = rows.saturating_mul(row::BYTES).saturating_add(MAPS_BYTES + 500_000) / 1_000_000;
    format!(
        "the kernel part takes {megabytes} MB of kernel memory where there may be {cpus} CPUs, which a memory limit counts beside \
         the process itself; raise the limit (no flag makes it less), or serve HTTP and TLS alone by --datapath off"
    )
}

/// What the verifier stumbled over; its statistics follow it.
fn last_words(log: &str) -> &str {
    let is_statistics = |line: &&str| {
        ["processed ", "verification time", "stack depth"].iter().any(|it| line.starts_with(it))
    };
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty() && !is_statistics(line));
    lines.next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_error_number_and_what_helps_against_that() {
        let refused = |number| MapError::CreateError {
            name: "TABLES".to_owned(),
            io_error: io::Error::from_raw_os_error(number),
        };
        let in_depth = aya::EbpfError::MapError(refused(libc::EMFILE));

        assert_eq!(
            told(&refused(libc::EPERM)),
            "failed to create map `TABLES`: Operation not permitted (os error 1); needs root or CAP_BPF, CAP_NET_ADMIN \
             and CAP_PERFMON"
        );
        assert_eq!(
            told(&in_depth),
            "map error: failed to create map `TABLES`: Too many open files (os error 24); more open files are needed: \
             raise the limit (ulimit -n, LimitNOFILE=)"
        );
        let hidden = MapError::IoError(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(told(&hidden), format!("Operation not permitted (os error 1); {PERMISSION}"));
    }

    #[test]
    fn a_kernel_that_is_too_old_is_named_with_the_one_that_is_needed() {
        let too_large = MapError::CreateError {
            name: "TABLES".to_owned(),
            io_error: io::Error::from_raw_os_error(libc::E2BIG),
        };

        assert_eq!(
            told_on(&too_large, "5.15.0-204-generic", 2),
            "failed to create map `TABLES`: Argument list too long (os error 7); needs Linux 6.1 or newer (this is \
             5.15.0-204-generic; --datapath off serves HTTP and TLS on any)"
        );
    }

    #[test]
    fn too_little_memory_says_how_much_it_takes_and_that_no_setting_makes_it_less() {
        let refused = MapError::CreateError {
            name: "TABLES".to_owned(),
            io_error: io::Error::from_raw_os_error(libc::ENOMEM),
        };

        let [on_two, on_many] = [2, 384].map(|cpus| told_on(&refused, "6.1", cpus));

        assert!(on_two.contains("takes 85 MB of kernel memory where there may be 2 CPUs"), "{on_two}");
        assert!(on_many.contains("takes 686 MB"), "{on_many}");
        assert!(!on_two.contains("--flow-entries"), "{on_two}");
    }

    #[test]
    fn of_the_verifiers_pages_the_line_counts_that_says_no() {
        let log = "0: R1=ctx() R10=fp0\n12: (1d) if r1 == r2 goto pc+3\nR1 pointer comparison prohibited\nprocessed 13 \
                   insns (limit 1000000) max_states_per_insn 0\n\n";

        assert_eq!(last_words(log), "R1 pointer comparison prohibited");
        assert_eq!(last_words(""), "");
    }
}
