use super::*;
use crate::ha::ports::Watchdog as _;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a device can do, and what was done to it.
#[derive(Clone, Default)]
struct Model {
    missing: bool,
    /// It has this timeout and no other.
    fixed: Option<u32>,
    /// Closing does not stop it.
    unstoppable: bool,
    /// An agent of before left it armed.
    counts: bool,
    timeout: u32,
    done: Vec<String>,
}

#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Model>>);

impl Shelf {
    fn with<T>(&self, look: impl FnOnce(&mut Model) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn took(&self) -> Vec<String> {
        self.with(|model| std::mem::take(&mut model.done))
    }
}

impl Driver for Shelf {
    fn open(&self, settings: &Settings) -> Result<Box<dyn Device>, String> {
        self.with(|model| {
            if model.missing {
                return Err("no such file".to_owned());
            }
            model.timeout = model.fixed.unwrap_or(60);
            model.done.push(format!("open {}", settings.device.display()));
            Ok(())
        })?;
        Ok(Box::new(self.clone()))
    }

    fn unusable(&self, _: &Settings) -> Option<String> {
        self.with(|model| model.missing.then(|| "no such file".to_owned()))
    }

    fn counts_on(&self, _: &Settings) -> bool {
        self.with(|model| model.counts)
    }
}

impl Device for Shelf {
    fn timeout(&mut self) -> Result<u32, String> {
        Ok(self.with(|model| model.timeout))
    }

    fn set_timeout(&mut self, seconds: u32) -> Result<(), String> {
        self.with(|model| match model.fixed {
            Some(_) => Err("it cannot be set".to_owned()),
            None => {
                model.timeout = seconds;
                model.done.push(format!("timeout {seconds}"));
                Ok(())
            }
        })
    }

    fn can_be_disabled(&self) -> bool {
        self.with(|model| !model.unstoppable)
    }

    fn keep_alive(&mut self) -> Result<(), String> {
        self.with(|model| model.done.push("alive".to_owned()));
        Ok(())
    }

    fn disable(self: Box<Self>) -> Result<(), String> {
        self.with(|model| model.done.push("off".to_owned()));
        Ok(())
    }
}

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        driver: DriverKind::Linux,
        device: "/dev/watchdog".into(),
        safety_margin: 5,
        timing: Timing::default(),
    }
}

/// A watchdog at second 1000, and its device.
fn at_1000(settings: Settings, model: Model) -> (Watchdog, Shelf, Arc<AtomicU64>) {
    let shelf = Shelf(Arc::new(Mutex::new(model)));
    let clock = Arc::new(AtomicU64::new(1_000_000));
    let shown = clock.clone();
    let now = move || Millis(shown.load(Ordering::SeqCst));
    (Watchdog::new(settings, Arc::new(shelf.clone()), now), shelf, clock)
}

/// Seconds, on the same clock.
fn second(seconds: u64) -> Millis {
    Millis(seconds * 1000)
}

/// Proves HA-171, CFG-147.
#[test]
fn the_timeout_ends_before_the_lock() {
    for (ttl, loop_wait, safety_margin, timeout, fits) in [
        (30, 10, 5, 25, true),
        (30, 10, -1, 15, true),
        (31, 10, -1, 15, true),
        (30, 10, 0, 30, true),
        (30, 10, 20, 10, true),
        (30, 10, 21, 9, false),
        (20, 10, -1, 10, true),
        (20, 11, -1, 10, false),
        (30, 1, 40, -10, false),
        (30, 1, 30, 0, false),
        (3, 1, -1, 1, false),
        (4, 1, -1, 2, true),
        (3, 1, 0, 3, true),
    ] {
        let timing = Timing { ttl, loop_wait, retry_timeout: 10 };
        let settings = Settings { safety_margin, timing, ..settings(Mode::Required) };
        assert_eq!(settings.timeout(), timeout, "{ttl} {loop_wait} {safety_margin}");
        let (watchdog, shelf, _) = at_1000(settings, Model::default());
        assert_eq!(
            watchdog.activate(second(1_100)).is_ok(),
            fits,
            "{ttl} {loop_wait} {safety_margin}"
        );
        assert_eq!(watchdog.unhealthy().is_none(), fits);
        assert_eq!(watchdog.is_running(), fits);
        assert_eq!(shelf.took().is_empty(), !fits, "an unfit one is not even opened");
    }
}

/// Proves HA-172 and HA-176: a sign of life only when the lock was confirmed, and never for longer
/// than that.
#[test]
fn it_never_waits_longer_than_the_lock_is_confirmed() {
    let (watchdog, shelf, clock) = at_1000(settings(Mode::Automatic), Model::default());
    watchdog.keep_alive(second(1_028));
    assert!(shelf.took().is_empty(), "not armed: nothing to keep alive");
    // The lock was taken a while ago.
    watchdog.activate(second(1_020)).unwrap();
    assert_eq!(shelf.took(), ["open /dev/watchdog", "timeout 20"]);
    watchdog.activate(second(1_020)).unwrap();
    assert!(shelf.took().is_empty(), "it runs");
    clock.store(1_010_000, Ordering::SeqCst);
    watchdog.keep_alive(second(1_038));
    assert_eq!(shelf.took(), ["timeout 25", "alive"]);
    clock.store(1_020_000, Ordering::SeqCst);
    watchdog.keep_alive(second(1_048));
    assert_eq!(shelf.took(), ["alive"]);
    // The answer to a renewal took nine seconds.
    clock.store(1_039_000, Ordering::SeqCst);
    watchdog.keep_alive(second(1_058));
    assert_eq!(shelf.took(), ["timeout 19", "alive"]);
    // Later than everything it was about.
    clock.store(1_057_500, Ordering::SeqCst);
    watchdog.keep_alive(second(1_058));
    assert!(shelf.took().is_empty());
}

/// Proves HA-170 and HA-173.
#[test]
fn what_each_mode_demands() {
    let missing = Model { missing: true, ..Model::default() };
    let fixed = |seconds| Model { fixed: Some(seconds), ..Model::default() };
    let unstoppable = |seconds| Model { unstoppable: true, ..fixed(seconds) };
    for (mode, model, allowed, runs) in [
        (Mode::Off, Model::default(), true, false),
        (Mode::Automatic, Model::default(), true, true),
        (Mode::Required, Model::default(), true, true),
        (Mode::Off, missing.clone(), true, false),
        (Mode::Automatic, missing.clone(), true, false),
        (Mode::Required, missing, false, false),
        // Its own timeout is short enough.
        (Mode::Required, fixed(20), true, true),
        // Longer than the lock: better than nothing, and not what was required.
        (Mode::Automatic, fixed(60), true, true),
        (Mode::Required, fixed(60), false, false),
        // Shorter than loop_wait: it would reset a healthy machine.
        (Mode::Automatic, fixed(5), true, false),
        (Mode::Required, fixed(5), false, false),
        (Mode::Automatic, unstoppable(25), true, true),
    ] {
        let (watchdog, shelf, _) = at_1000(settings(mode), model.clone());
        let activated = watchdog.activate(second(1_028));
        assert_eq!(activated.is_ok(), allowed, "{mode:?} {:?}: {activated:?}", model.fixed);
        assert_eq!(watchdog.is_running(), runs, "{mode:?} {:?}", model.fixed);
        let unhealthy = mode == Mode::Required && model.missing;
        assert_eq!(watchdog.unhealthy().is_some(), unhealthy, "{mode:?}");
        let done = shelf.took();
        let left_running = done.iter().any(|what| what.starts_with("open"))
            && !done.iter().any(|what| what == "off");
        assert_eq!(left_running, runs, "what is not used is closed: {done:?}");
    }
}

/// Proves HA-174: disabled once; one that cannot be gets a last sign of life.
#[test]
fn disabling() {
    let (watchdog, shelf, _) = at_1000(settings(Mode::Required), Model::default());
    watchdog.activate(second(1_028)).unwrap();
    shelf.took();
    watchdog.disable();
    watchdog.disable();
    assert_eq!(shelf.took(), ["off"]);
    watchdog.keep_alive(second(1_028));
    assert!(shelf.took().is_empty());
    let stubborn = Model { unstoppable: true, ..Model::default() };
    let (watchdog, shelf, _) = at_1000(settings(Mode::Required), stubborn);
    watchdog.activate(second(1_028)).unwrap();
    shelf.took();
    watchdog.disable();
    assert_eq!(shelf.took(), ["alive", "off"]);
}

/// Proves HA-175: other settings come with the next sign of life, switching off at once.
#[test]
fn settings_change_under_way() {
    let (watchdog, shelf, _) = at_1000(settings(Mode::Automatic), Model::default());
    watchdog.activate(second(1_028)).unwrap();
    shelf.took();
    let shorter = Settings { safety_margin: -1, ..settings(Mode::Automatic) };
    watchdog.configure(shorter.clone());
    assert!(shelf.took().is_empty());
    watchdog.keep_alive(second(1_028));
    assert_eq!(shelf.took(), ["timeout 15", "alive"]);
    let moved = Settings { device: "/dev/watchdog1".into(), ..shorter };
    watchdog.configure(moved.clone());
    assert!(shelf.took().is_empty());
    watchdog.keep_alive(second(1_028));
    assert_eq!(shelf.took(), ["off", "open /dev/watchdog1", "timeout 15", "alive"]);
    watchdog.configure(Settings { mode: Mode::Off, ..moved.clone() });
    assert_eq!(shelf.took(), ["off"]);
    watchdog.keep_alive(second(1_028));
    watchdog.activate(second(1_028)).unwrap();
    assert!(shelf.took().is_empty());
    watchdog.configure(moved);
    watchdog.activate(second(1_028)).unwrap();
    assert!(watchdog.is_running());
}

fn driver_at(path: &Path, driver: DriverKind) -> Settings {
    Settings { driver, device: path.to_path_buf(), ..settings(Mode::Required) }
}

/// Proves CFG-148: what a test harness reads.
#[test]
fn the_testing_driver_writes_what_a_reader_expects() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("watchdog");
    std::fs::write(&path, "").unwrap();
    let settings = driver_at(&path, DriverKind::Testing);
    let watchdog = Watchdog::new(settings, Arc::new(LinuxDriver), || second(1_000));
    assert_eq!(watchdog.unhealthy(), None);
    watchdog.activate(second(1_028)).unwrap();
    watchdog.keep_alive(second(1_028));
    watchdog.keep_alive(second(1_020));
    watchdog.disable();
    let mut written = String::new();
    std::fs::File::open(&path).unwrap().read_to_string(&mut written).unwrap();
    assert_eq!(written, "Ctimeout=25\n1Ctimeout=20\n1V");
}

/// A pipe that nobody reads, a file that is no device, and one that is not there: told at once, and
/// whoever requires it does not lead.
#[test]
fn what_is_no_watchdog() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let nothing = dir.path().join("nothing");
    for (path, driver) in
        [(&file, DriverKind::Linux), (&pipe, DriverKind::Testing), (&nothing, DriverKind::Linux)]
    {
        let settings = driver_at(path, driver);
        let watchdog = Watchdog::new(settings, Arc::new(LinuxDriver), || second(1_000));
        let why = watchdog.activate(second(1_028)).unwrap_err();
        assert!(why.contains(dir.path().to_str().unwrap()), "{why}");
        assert!(!watchdog.is_running());
    }
    let settings = driver_at(&nothing, DriverKind::Linux);
    let watchdog = Watchdog::new(settings, Arc::new(LinuxDriver), || second(1_000));
    assert!(watchdog.unhealthy().is_some());
}

/// Proves HA-178: a device that could not be used is tried again at each turn of a leader, and is used
/// as soon as it can be.
#[test]
fn a_device_that_comes_late_is_used() {
    let missing = Model { missing: true, ..Model::default() };
    let (watchdog, shelf, _) = at_1000(settings(Mode::Required), missing);
    for _ in 0..3 {
        assert!(watchdog.activate(second(1030)).is_err() && !watchdog.is_running());
    }
    assert_eq!(watchdog.state().said, "", "a required one is the core's to tell");
    shelf.with(|model| model.missing = false);
    assert_eq!(watchdog.activate(second(1030)), Ok(()));
    assert!(watchdog.is_running());
    let missing = Model { missing: true, ..Model::default() };
    let (watchdog, shelf, _) = at_1000(settings(Mode::Automatic), missing);
    for _ in 0..3 {
        assert_eq!(watchdog.activate(second(1030)), Ok(()));
        assert_eq!(watchdog.state().said, "not used: no such file", "said once, kept to compare");
    }
    shelf.with(|model| model.missing = false);
    assert_eq!(watchdog.activate(second(1030)), Ok(()));
    assert!(watchdog.is_running());
}

/// Proves HA-179: what an agent left armed that was killed is opened and stopped, once; what another
/// program has open is not; and who arms it takes it over.
#[test]
fn what_a_former_agent_left_armed_is_stopped() {
    let left = Model { counts: true, ..Model::default() };
    let (watchdog, shelf, _) = at_1000(settings(Mode::Automatic), left.clone());
    watchdog.disable();
    assert_eq!(shelf.took(), ["open /dev/watchdog", "off"]);
    watchdog.disable();
    assert!(shelf.took().is_empty(), "asked once");
    let busy = Model { missing: true, ..left.clone() };
    let (watchdog, shelf, _) = at_1000(settings(Mode::Automatic), busy);
    watchdog.disable();
    assert!(shelf.took().is_empty() && !watchdog.is_running());
    let (watchdog, shelf, _) = at_1000(settings(Mode::Off), left.clone());
    watchdog.disable();
    assert!(shelf.took().is_empty(), "nobody said that it is ours");
    let (watchdog, shelf, _) = at_1000(settings(Mode::Automatic), left);
    watchdog.activate(second(1030)).unwrap();
    assert_eq!(shelf.took(), ["open /dev/watchdog", "timeout 25"]);
    let (watchdog, shelf, _) = at_1000(settings(Mode::Automatic), Model::default());
    watchdog.disable();
    assert!(shelf.took().is_empty(), "an idle device is not even opened");
}
