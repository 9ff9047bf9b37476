//! What a panic costs: the connection, the object or the answer that it happened in where somebody stands
//! ready for that, and else the process, which whoever supervises it starts anew.
//!
//! A half-dead agent would be worse than one that ends: a loop that nobody awaits would be missing without a
//! word. So a hook ends the process by itself, wherever it was not told that the panic is contained.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};

const _: () =
    assert!(cfg!(panic = "unwind"), "panics are contained by unwinding: build with panic = \"unwind\"");

thread_local! {
    /// A panic here is somebody's to take.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Panics that were contained.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// From now on a panic that nothing contains ends the process, in whatever thread it happens.
pub fn end_the_process() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        if !CONTAINED.get() {
            std::process::abort();
        }
        COUNT.fetch_add(1, Ordering::Relaxed);
    }));
}

/// How many were contained so far.
pub fn contained() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// This thread's tasks are apart from each other: a panic costs the task. Those that are not are [`vital`].
pub fn cost_their_task() {
    CONTAINED.set(true);
}

/// A task that the others of its thread are nothing without.
pub async fn vital<F: Future>(task: F) -> F::Output {
    let mut task = pin!(task);
    poll_fn(|cx| {
        let _vital = Within::new(false);
        task.as_mut().poll(cx)
    })
    .await
}

/// Work whose panic the caller takes: it comes back as what it said. What the work has changed is as it left it.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let within = Within::new(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    drop(within);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

/// Until it is dropped.
struct Within {
    before: bool,
}

impl Within {
    fn new(contained: bool) -> Self {
        Self { before: CONTAINED.replace(contained) }
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        CONTAINED.set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    /// Names the scene to play, in a process of its own.
    const SCENE: &str = "PENSTOCK_TEST_PANIC";

    fn play(scene: &str) -> Output {
        let own = std::env::current_exe().expect("this program");
        Command::new(own)
            .args(["--exact", "panics::tests::scenes", "--nocapture"])
            .env(SCENE, scene)
            .output()
            .expect("started")
    }

    /// Two tasks of a worker, of which the first panics.
    fn tasks(first: impl Future<Output = ()> + 'static) {
        cost_their_task();
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).expect("a runtime");
        runtime.block_on(async {
            let first = tokio::task::spawn_local(first);
            let second = tokio::task::spawn_local(async { println!("the other task ran") });
            assert!(first.await.is_err_and(|error| error.is_panic()));
            second.await.expect("ended well");
        });
        println!("{} contained", contained());
    }

    #[test]
    fn scenes() {
        let Ok(scene) = std::env::var(SCENE) else { return };
        end_the_process();
        match scene.as_str() {
            "task" => tasks(async { panic!("of one") }),
            "vital" => tasks(vital(async { panic!("of all") })),
            "caught" => println!("caught: {:?}", catch(|| -> u8 { panic!("in {}", "an object") })),
            "caught before" => {
                let _ = catch(|| -> u8 { panic!("in an object") });
                panic!("where nobody stands ready");
            }
            "a thread" => drop(std::thread::spawn(|| panic!("alone")).join()),
            other => unreachable!("{other}"),
        }
        println!("the process went on");
    }

    #[test]
    fn a_panic_costs_what_contains_it_and_else_the_process() {
        for (scene, goes_on, says) in [
            ("task", true, "the other task ran\n1 contained"),
            ("vital", false, "of all"),
            ("caught", true, "caught: Err(\"in an object\")"),
            ("caught before", false, "where nobody stands ready"),
            ("a thread", false, "alone"),
        ] {
            let Output { status, stdout, stderr } = play(scene);

            let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
            assert_eq!(text.contains("the process went on"), goes_on, "{scene}: {text}");
            assert_eq!(status.success(), goes_on, "{scene}: {status}");
            assert!(text.contains(says), "{scene}: {text}");
        }
    }
}
