//! The hardware watchdog: a device that resets this machine when nobody keeps it alive.
//! (section 17 of docs/spec/ha-loop.md)
//!
//! ```text
//!  ha (lease confirmed) ─► Watchdog: whether, how long ─► Driver, Device: /dev/watchdog, or a pipe
//! ```
//! It is kept alive only with a moment up to which the lock is confirmed, and is never set to reset
//! the machine later than that. Where the device allows only whole seconds or a timeout of its own,
//! an answer that came too late keeps nothing alive. Never in here: a decision about leadership.

mod linux;
#[cfg(test)]
mod tests;

pub use linux::LinuxDriver;

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports;
use hathi_dcs::{Millis, Timing};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `watchdog.mode`. (HA-170, CFG-145)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    Off,
    /// Used where it works.
    #[default]
    Automatic,
    /// A node on which it does not work never leads.
    Required,
}

/// `watchdog.driver`. (CFG-148)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverKind {
    #[default]
    Linux,
    /// An ordinary file or a named pipe that a test reads: `Ctimeout=<seconds>` and a line feed
    /// instead of the ioctl, then the same bytes as the device gets.
    Testing,
}

/// Section `watchdog`, and the rhythm it has to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    pub driver: DriverKind,
    pub device: PathBuf,
    /// Seconds that the machine is reset before the key can go to somebody else; -1: half of ttl.
    pub safety_margin: i32,
    pub timing: Timing,
}

impl Settings {
    /// Seconds without a sign of life before the machine is reset. Zero or less: it cannot be used.
    /// (HA-171)
    pub fn timeout(&self) -> i64 {
        match self.safety_margin {
            -1 => i64::from(self.timing.ttl / 2),
            margin => i64::from(self.timing.ttl) - i64::from(margin),
        }
    }

    /// Why no device could ever do: the loop is slower than the timeout. (HA-171) Devices count whole
    /// seconds, and a sign of life comes once a second at most. (HA-324)
    fn unfit(&self) -> Option<String> {
        let (timeout, loop_wait) = (self.timeout(), self.timing.loop_wait);
        if timeout < i64::from(loop_wait) {
            return Some(format!(
                "its timeout of {timeout} s would be shorter than loop_wait of {loop_wait} s"
            ));
        }
        (timeout < 2).then(|| format!("its timeout of {timeout} s would be shorter than 2 s"))
    }

    /// Can this node lead with such a lease, as far as its watchdog is concerned? (HA-324)
    pub fn allows(&self, timing: Timing) -> bool {
        let with = Self { timing, ..self.clone() };
        self.mode != Mode::Required || with.unfit().is_none()
    }
}

/// As devices take it.
fn seconds(settings: &Settings) -> u32 {
    u32::try_from(settings.timeout().clamp(0, 65_535)).unwrap_or(0)
}

/// An open device: from now on the machine is reset unless it is kept alive. Dropping it leaves it
/// running.
pub trait Device: Send {
    /// Seconds, as the device has them.
    ///
    /// # Errors
    /// The device did not say; one line.
    fn timeout(&mut self) -> Result<u32, String>;

    /// Asks for another timeout, and counts anew.
    ///
    /// # Errors
    /// It cannot be changed; one line.
    fn set_timeout(&mut self, seconds: u32) -> Result<(), String>;

    /// Does closing stop it? Some run on whatever happens.
    fn can_be_disabled(&self) -> bool;

    /// Counts anew.
    ///
    /// # Errors
    /// It was not reached; the machine will be reset if that stays so.
    fn keep_alive(&mut self) -> Result<(), String>;

    /// Stops it, where it can be stopped.
    ///
    /// # Errors
    /// It runs on; one line.
    fn disable(self: Box<Self>) -> Result<(), String>;
}

/// Opens devices.
pub trait Driver: Send + Sync {
    /// Opens it, which starts the countdown.
    ///
    /// # Errors
    /// Absent, in use or not allowed; one line.
    fn open(&self, settings: &Settings) -> Result<Box<dyn Device>, String>;

    /// Why opening is known to fail, without opening.
    fn unusable(&self, settings: &Settings) -> Option<String>;

    /// Does the device count although nobody here opened it: did an agent that was killed leave it
    /// armed? `false` when that cannot be said. (HA-179)
    fn counts_on(&self, settings: &Settings) -> bool;
}

struct Armed {
    device: Box<dyn Device>,
    /// As it was opened with.
    settings: Settings,
    /// Seconds that the device was set to.
    timeout: u32,
}

struct State {
    settings: Settings,
    armed: Option<Armed>,
    /// What was complained of last: each trouble is said once.
    said: String,
    /// It is known by now whether a former agent of this node left the device armed.
    heir: bool,
}

/// The watchdog of this agent. All calls return at once.
pub struct Watchdog {
    driver: Arc<dyn Driver>,
    /// The clock of the lease.
    now: Box<dyn Fn() -> Millis + Send + Sync>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").finish_non_exhaustive()
    }
}

impl Watchdog {
    pub fn new(
        settings: Settings,
        driver: Arc<dyn Driver>,
        now: impl Fn() -> Millis + Send + Sync + 'static,
    ) -> Self {
        let state = State { settings, armed: None, said: String::new(), heir: false };
        Self { driver, now: Box::new(now), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other settings: switching off is immediate, the rest comes with the next sign of life, so that
    /// it fits the lease. (HA-175)
    pub fn configure(&self, settings: Settings) {
        let mut state = self.state();
        if settings.mode == Mode::Off {
            state.disarm();
        }
        state.settings = settings;
    }

    /// Is a device open?
    pub fn is_running(&self) -> bool {
        self.state().armed.is_some()
    }
}

impl State {
    fn say(&mut self, trouble: String) {
        if self.said != trouble {
            tracing::warn!("watchdog: {trouble}");
            self.said = trouble;
        }
    }

    /// Opens the device and gives it its timeout. (HA-172, HA-173)
    fn arm(&mut self, driver: &dyn Driver, left: u64) -> Result<(), String> {
        let settings = self.settings.clone();
        if let Some(why) = settings.unfit() {
            return Err(why);
        }
        let wanted = seconds(&settings);
        // The lock may be older than this moment.
        let first = wanted.min(u32::try_from(left / 1000).unwrap_or(u32::MAX));
        if first == 0 {
            return Err("the lock is confirmed too late to go on".to_owned());
        }
        let mut device = driver.open(&settings)?;
        // A device without a timeout of ours may have one that does.
        let refused = device.set_timeout(first).err();
        let timeout = match device.timeout() {
            Ok(timeout) => timeout,
            Err(why) => {
                let _ = device.disable();
                return Err(why);
            }
        };
        let refused = refused.map_or_else(String::new, |why| format!(" ({why})"));
        let too_short = timeout < settings.timing.loop_wait.min(first);
        if too_short && device.can_be_disabled() {
            let _ = device.disable();
            return Err(format!("its timeout of {timeout} s is shorter than loop_wait{refused}"));
        }
        if timeout > wanted {
            let trouble = format!(
                "its timeout of {timeout} s does not end before the lock, {wanted} s would{refused}"
            );
            if settings.mode == Mode::Required {
                let _ = device.disable();
                return Err(trouble);
            }
            self.say(trouble);
        }
        if !device.can_be_disabled() {
            self.say(
                "this device cannot be disabled: the machine is reset after the lock is lost"
                    .into(),
            );
        }
        tracing::info!("watchdog: {} armed, {timeout} s", settings.device.display());
        self.armed = Some(Armed { device, settings, timeout });
        Ok(())
    }

    /// Stops what an agent that was killed left armed: nobody keeps it alive any more, and it would
    /// reset a machine on which all is well. Asked once; what another program holds open is not ours.
    /// (HA-179)
    fn disarm_inherited(&mut self, driver: &dyn Driver) {
        if std::mem::replace(&mut self.heir, true) || self.settings.mode == Mode::Off {
            return;
        }
        if !driver.counts_on(&self.settings) || broken(Breakage::WatchdogIsLeft) {
            return;
        }
        match driver.open(&self.settings) {
            Ok(mut device) => {
                let settings = self.settings.clone();
                let timeout = device.timeout().unwrap_or_default();
                tracing::info!("watchdog: a former agent left it armed");
                self.armed = Some(Armed { device, settings, timeout });
                self.disarm();
            }
            Err(why) => tracing::debug!("watchdog: it counts, and is not ours: {why}"),
        }
    }

    /// HA-174.
    fn disarm(&mut self) {
        let Some(Armed { mut device, timeout, .. }) = self.armed.take() else { return };
        if !device.can_be_disabled() {
            // One last sign of life gives an operator some time.
            let _ = device.keep_alive();
            tracing::warn!("watchdog: it cannot be disabled; the machine is reset in {timeout} s");
        }
        match device.disable() {
            Ok(()) => tracing::info!("watchdog: disabled"),
            Err(why) => tracing::error!("watchdog: not disabled: {why}"),
        }
    }

    /// Counts anew, and not beyond `left` milliseconds. (HA-172, HA-176)
    fn keep_alive(&mut self, left: u64) {
        let wanted = seconds(&self.settings).min(u32::try_from(left / 1000).unwrap_or(u32::MAX));
        let automatic = self.settings.mode != Mode::Required;
        let Some(armed) = &mut self.armed else { return };
        let trouble = if wanted == 0 {
            Err("the lock is confirmed too late to go on".to_owned())
        } else if wanted == armed.timeout {
            armed.device.keep_alive()
        } else {
            armed.set_timeout(wanted, automatic)
        };
        if let Err(why) = trouble {
            self.say(format!("no sign of life: {why}"));
        }
    }
}

impl Armed {
    /// Another timeout. A device that has only its own is kept alive with that, if it fits; in
    /// automatic mode also if it does not, which was said when it was armed.
    fn set_timeout(&mut self, wanted: u32, automatic: bool) -> Result<(), String> {
        let refused = self.device.set_timeout(wanted).err();
        let actual = self.device.timeout()?;
        self.timeout = actual;
        match refused {
            None if actual <= wanted => self.device.keep_alive(),
            Some(_) if actual <= wanted || automatic => self.device.keep_alive(),
            None => Err(format!("it took {actual} s for {wanted} s")),
            Some(why) => Err(why),
        }
    }
}

impl ports::Watchdog for Watchdog {
    fn activate(&self, until: Millis) -> Result<(), String> {
        let now = (self.now)();
        let mut state = self.state();
        if state.settings.mode == Mode::Off || state.armed.is_some() {
            return Ok(());
        }
        // Opening takes over what a former agent left armed.
        match state.arm(&*self.driver, until.since(now)) {
            Ok(()) => {
                state.heir = true;
                Ok(())
            }
            Err(why) if state.settings.mode == Mode::Required => Err(why),
            Err(why) => {
                state.say(format!("not used: {why}"));
                Ok(())
            }
        }
    }

    fn keep_alive(&self, until: Millis) {
        let left = until.since((self.now)());
        let mut state = self.state();
        let Some(armed) = &state.armed else { return };
        let moved = armed.settings.device != state.settings.device
            || armed.settings.driver != state.settings.driver;
        if moved {
            state.disarm();
            if let Err(why) = state.arm(&*self.driver, left) {
                state.say(format!("the new device is not used: {why}"));
            }
        }
        state.keep_alive(left);
    }

    fn disable(&self) {
        let mut state = self.state();
        if state.armed.is_none() {
            state.disarm_inherited(&*self.driver);
        }
        state.disarm();
    }

    fn unhealthy(&self) -> Option<String> {
        let state = self.state();
        if state.settings.mode != Mode::Required {
            return None;
        }
        state.settings.unfit().or_else(|| self.driver.unusable(&state.settings))
    }
}
