//! Loads and runs the kernel program on other kernels than this machine's, each in a virtual machine of its own: what a verifier
//! understands differs from version to version. Downloads nothing, and tries no network device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{ebpf, process, target_dir};

/// That all programs load, and that they do what they are for.
const TESTS: [&str; 2] = ["every_program_is_cheap_to_verify", "every_situation_has_its_named_outcome"];
/// All of it is emulated.
const SECONDS: &str = "1200";

/// Tries each kernel, given by its package (`linux-image-*.deb`), and says which refused what.
pub fn run(packages: &[PathBuf]) -> Result<()> {
    for program in ["qemu-system-x86_64", "busybox", "dpkg-deb"] {
        process::find(program).with_context(|| {
            format!("no {program} here; apt-get install qemu-system-x86 busybox-static dpkg")
        })?;
    }
    ebpf::build()?;
    let test = test_program()?;
    let mut refused = Vec::new();
    for package in packages {
        let name = package.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let outcome = on_kernel(package, &target_dir().join("kernels").join(&name), &test);
        match outcome.with_context(|| format!("try {name}"))? {
            None => println!("ok    {name}"),
            Some(output) => {
                println!("{output}\nFAIL  {name}");
                refused.push(name);
            }
        }
    }
    if refused.is_empty() { Ok(()) } else { bail!("failed on: {}", refused.join(", ")) }
}

/// The tier `prog`, built.
fn test_program() -> Result<PathBuf> {
    let arguments = ["test", "--package", "lb-tests", "--test", "prog"];
    process::run(process::cargo().args(arguments).arg("--no-run"))?;
    let told = process::output(
        process::cargo()
            .args(arguments)
            .args(["--no-run", "--message-format", "json"])
            .stderr(Stdio::inherit()),
    )?;
    // Programs of the package are built beside it.
    let artifact =
        told.lines().find(|line| line.contains("\"name\":\"prog\"") && line.contains("\"executable\":\""));
    let executable = artifact
        .and_then(|line| line.split_once("\"executable\":\""))
        .and_then(|(_, rest)| rest.split_once('"'));
    Ok(PathBuf::from(executable.context("cargo names no test program")?.0))
}

/// What the machine said, if a test failed there.
fn on_kernel(package: &Path, dir: &Path, test: &Path) -> Result<Option<String>> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let (unpacked, root) = (dir.join("package"), dir.join("root"));
    fs::create_dir_all(&unpacked)?;
    process::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&unpacked))?;
    let found =
        process::output(Command::new("find").arg(&unpacked).args(["-name", "vmlinuz*", "-type", "f"]))?;
    let kernel = found.lines().next().context("the package has no vmlinuz")?;
    fill(&root, test)?;
    let (image, console) = (dir.join("initrd"), dir.join("console"));
    let mut archive = Command::new("sh");
    archive.args(["-c", "find . | busybox cpio -o -H newc"]).current_dir(&root).stdout(File::create(&image)?);
    process::run(archive.stderr(Stdio::null()))?;

    let mut machine = Command::new("timeout");
    // Emulated, KVM or not: it is the verifier that is asked, and nested machines are not to be relied on.
    machine.args([SECONDS, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem"]);
    machine.args(["-smp", "2", "-m", "1500"]);
    machine.args(["-nic", "none", "-display", "none", "-no-reboot", "-kernel"]).arg(kernel);
    // An emulated clock does not keep the time that the kernel checks it against.
    let line = "console=ttyS0 panic=-1 mitigations=off no_timer_check nowatchdog tsc=reliable";
    machine.arg("-initrd").arg(image).args(["-append", line]);
    machine.arg("-serial").arg(format!("file:{}", console.display())).stdin(Stdio::null());
    process::run(&mut machine)?;
    let said = String::from_utf8_lossy(&fs::read(console)?).into_owned();
    let passed = format!("test result: ok. {} passed", TESTS.len());
    Ok((!said.contains(&passed)).then_some(said))
}

/// A root file system of the test, its libraries and a shell.
fn fill(root: &Path, test: &Path) -> Result<()> {
    let busybox = process::find("busybox").context("no busybox")?;
    put(&busybox, &root.join("bin/busybox"))?;
    put(test, &root.join("prog"))?;
    let libraries = process::output(Command::new("ldd").arg(test))?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        put(Path::new(library), &root.join(library.trim_start_matches('/')))?;
    }
    for dir in ["proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let init = format!(
        "#!/bin/busybox sh\nbusybox=/bin/busybox\n$busybox mount -t proc proc /proc\n$busybox mount -t sysfs sysfs /sys\n\
         $busybox ip link set lo up\nPENSTOCK_REQUIRE=prog /prog --test-threads 1 {}\n$busybox poweroff -f\n",
        TESTS.join(" ")
    );
    fs::write(root.join("init"), init)?;
    process::run(Command::new("chmod").arg("755").arg(root.join("init")))
}

fn put(file: &Path, at: &Path) -> Result<()> {
    fs::create_dir_all(at.parent().unwrap_or(at))?;
    fs::copy(file, at).with_context(|| format!("copy {}", file.display()))?;
    Ok(())
}
