//! The watchdog of each machine: the real room (src/watchdog) over a modelled device. A device that
//! is not kept alive resets the machine, agent and PostgreSQL with it; it counts on whatever happens
//! to the agent.

use crate::random::Random;
use crate::world::{MS, SECOND, World};
use hathi::watchdog::{Device, Driver, Mode, Settings, Watchdog};
use hathi_dcs::Timing;
use std::sync::{Arc, Mutex, Weak};

/// The watchdogs of one run.
#[derive(Default)]
pub struct Watchdogs {
    pub mode: Option<Mode>,
    pub safety_margin: i32,
    pub devices: Vec<Modelled>,
}

/// One device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Modelled {
    /// It is not there, or another program has it.
    pub missing: bool,
    /// True time at which the machine is reset.
    resets_at: Option<u64>,
    timeout: u32,
    /// Grows with each sign of life.
    epoch: u64,
}

impl Watchdogs {
    /// Drawn from a stream of its own, so that every other choice of a run stays what it was.
    pub fn draw(&mut self, seed: u64, guarded: bool) {
        let mut random = Random::new(seed ^ 0xD06);
        let (mode, safety_margin) = if guarded {
            let modes = [None, None, Some(Mode::Automatic), Some(Mode::Required)];
            (*random.pick(&modes), *random.pick(&[5, 5, 0, -1]))
        } else {
            // What stands in for the guard: everything it promises must hold.
            (random.percent(50).then_some(Mode::Required), -1)
        };
        self.mode = mode;
        self.safety_margin = safety_margin;
        for device in &mut self.devices {
            device.missing = mode.is_some() && random.percent(15);
        }
        // Somebody can lead.
        if let Some(first) = self.devices.first_mut() {
            first.missing = false;
        }
    }

    pub fn required(&self) -> bool {
        self.mode == Some(Mode::Required)
    }

    /// No two writers with this, whatever else is or is not there. (INV-2)
    pub fn fences(&self) -> bool {
        self.required() && self.safety_margin == -1
    }
}

struct Machine {
    world: Weak<Mutex<World>>,
    node: usize,
}

impl World {
    /// As the agent of this node would open it.
    pub fn watchdog_of(&self, node: usize, timing: Timing) -> Arc<Watchdog> {
        let world = Arc::downgrade(&self.shared());
        let clock = world.clone();
        let settings = Settings { timing, ..self.watchdog_settings() };
        let driver = Arc::new(Machine { world, node });
        Arc::new(Watchdog::new(settings, driver, move || {
            clock.upgrade().map_or(Default::default(), |world| world.lock().unwrap().local(node))
        }))
    }

    fn watchdog_settings(&self) -> Settings {
        Settings {
            mode: self.watchdogs.mode.unwrap_or(Mode::Off),
            driver: Default::default(),
            device: "/dev/watchdog".into(),
            safety_margin: self.watchdogs.safety_margin,
            timing: self.base.timing,
        }
    }

    /// The REST API of this node says that it must not be promoted.
    pub fn watchdog_failed(&self, node: usize) -> bool {
        self.watchdogs.required() && self.watchdogs.devices[node].missing
    }

    /// Its settings after a change of ttl or loop_wait.
    pub fn watchdog_settings_for(&self, timing: Timing) -> Settings {
        Settings { timing, ..self.watchdog_settings() }
    }

    fn count_anew(&mut self, node: usize) {
        let timeout = u64::from(self.watchdogs.devices[node].timeout) * 1000;
        let at = self.true_at(node, self.local(node).plus(timeout));
        let device = &mut self.watchdogs.devices[node];
        device.epoch += 1;
        device.resets_at = Some(at);
        let epoch = device.epoch;
        self.check_sign_of_life(node, at);
        self.at(at, move |world| {
            let device = &mut world.watchdogs.devices[node];
            if device.epoch == epoch && device.resets_at.take().is_some() {
                world.reset_machine(node);
            }
        });
    }

    fn reset_machine(&mut self, node: usize) {
        self.check_reset(node);
        self.fault("machine reset by its watchdog");
        self.say(node, 28, |_| "WATCHDOG resets the machine".into());
        self.nodes[node].suspended = false;
        self.kill_agent(node);
        self.pg_die(node, "the machine was reset");
        self.nodes[node].fence = None;
        let boot = self.random.between(10_000, 40_000) * MS;
        self.active_faults += 1;
        self.after(boot, move |world| {
            world.active_faults = world.active_faults.saturating_sub(1);
            world.last_fault_at = world.now_us;
            world.start_agent(node);
        });
    }

    /// INV-26: kept alive only within what the store confirmed of the lock, or what the members
    /// promised in failsafe mode. A cluster that is being created has no lock yet.
    fn check_sign_of_life(&mut self, node: usize, resets_at: u64) {
        let kept_its_promise = self.store_kept_its_promise();
        let created = self.store.initialize.as_ref().is_some_and(|(value, _)| !value.is_empty());
        if !created || !kept_its_promise {
            return;
        }
        let mine =
            self.store.leader.as_ref().is_some_and(|held| held.name == self.nodes[node].name);
        let now = self.local(node);
        let licensed = self.nodes[node].agent.as_ref();
        let licensed = licensed.and_then(|agent| agent.lease.licensed_until(now));
        let licensed = licensed.map(|until| self.true_at(node, until));
        let ends = if mine { self.store.leader_until() } else { None }.max(licensed);
        if ends.is_none_or(|ends| resets_at > ends + MS) {
            let name = self.nodes[node].name.clone();
            let what = format!(
                "the watchdog of {name} waits until {} ms, the lock ends at {:?}",
                resets_at / MS,
                ends.map(|ends| ends / MS)
            );
            self.violation("INV-26", what);
        }
    }

    /// INV-26: stopped only when nothing can be written here any more.
    fn check_disabled(&mut self, node: usize) {
        let paused = self.nodes[node].agent.as_ref().is_some_and(|agent| agent.settings.pause);
        if self.nodes[node].server.writable() && !paused {
            let what =
                format!("the watchdog of {} is disabled under clients", self.nodes[node].name);
            self.violation("INV-26", what);
        }
    }

    /// INV-26: no promotion without it, where it is required. (HA-100)
    pub fn check_watched(&mut self, node: usize) {
        let device = &self.watchdogs.devices[node];
        if self.watchdogs.required() && device.resets_at.is_none() && !self.in_hands(node) {
            let what = format!("{} promotes without its watchdog", self.nodes[node].name);
            self.violation("INV-26", what);
        }
    }

    /// INV-13: who cannot have what is required does not get the key.
    pub fn check_may_lead(&mut self, node: usize) {
        if self.watchdog_failed(node) && self.is_healthy(node, SECOND) && !self.in_hands(node) {
            let what = format!("{} gets the key without its watchdog", self.nodes[node].name);
            self.violation("INV-13", what);
        }
    }

    /// INV-26: it runs whenever a server here is a primary for long under a healthy agent.
    pub fn check_watchdogs(&mut self) {
        if !self.watchdogs.required() {
            return;
        }
        for node in 0..self.members() {
            let leads = self.nodes[node].server.writable()
                && self.is_healthy(node, 30 * SECOND)
                && !self.in_hands(node)
                && self.last_fault_at + 30 * SECOND < self.now_us
                && self.nodes[node].agent.as_ref().is_some_and(|agent| agent.tasks.is_empty())
                && self.nodes[node].server.ready_since + 30 * SECOND < self.now_us;
            if leads && self.watchdogs.devices[node].resets_at.is_none() {
                let what = format!("{} is a primary without its watchdog", self.nodes[node].name);
                self.violation("INV-26", what);
            }
        }
    }

    /// INV-26: nor that of a standby which has led nothing for long, whoever armed the device. (HA-179)
    fn check_reset_of_a_standby(&mut self, node: usize) {
        let long = 15 * SECOND;
        let earlier = self.local_at(node, self.now_us.saturating_sub(long));
        let server = &self.nodes[node].server;
        let idle = server.ready() && server.recovering && !server.frozen && !server.promoting;
        let led_nothing = self.nodes[node]
            .agent
            .as_ref()
            .is_some_and(|agent| agent.lease.until(earlier).is_none() && agent.tasks.is_empty());
        if idle && led_nothing && self.is_healthy(node, long) && !self.nodes[node].suspended {
            let what = format!("the machine of {}, a standby, is reset", self.nodes[node].name);
            self.violation("INV-26", what);
        }
    }

    /// INV-5: no machine of a healthy agent is reset.
    fn check_reset(&mut self, node: usize) {
        self.check_reset_of_a_standby(node);
        let ttl = self.base.timing.ttl_ms() * MS;
        let well = self.is_healthy(node, ttl) && self.sees_store(node);
        let ill = self.store.slow_ms + self.store.lose_requests + self.store.lose_answers;
        if well && self.last_fault_at + ttl < self.now_us && ill == 0 {
            let what = format!("the machine of {} is reset and all is well", self.nodes[node].name);
            self.violation("INV-5", what);
        }
    }
}

impl Driver for Machine {
    fn open(&self, _: &Settings) -> Result<Box<dyn Device>, String> {
        let Some(world) = self.world.upgrade() else { return Err("no world".into()) };
        let mut world = world.lock().unwrap();
        let device = &mut world.watchdogs.devices[self.node];
        if device.missing {
            return Err("/dev/watchdog: no such file".into());
        }
        // It counts since now, and for how long is said at once.
        device.timeout = 60;
        device.epoch += 1;
        device.resets_at = None;
        world.say(self.node, 29, |_| "watchdog armed".into());
        Ok(Box::new(Opened { world: self.world.clone(), node: self.node }))
    }

    fn unusable(&self, _: &Settings) -> Option<String> {
        let world = self.world.upgrade()?;
        let world = world.lock().unwrap();
        world.watchdogs.devices[self.node].missing.then(|| "/dev/watchdog: no such file".into())
    }

    fn counts_on(&self, _: &Settings) -> bool {
        let Some(world) = self.world.upgrade() else { return false };
        let mut world = world.lock().unwrap();
        let counts = world.watchdogs.devices[self.node].resets_at.is_some();
        if counts {
            world.count("watchdogs that a dead agent left armed");
        }
        counts
    }
}

struct Opened {
    world: Weak<Mutex<World>>,
    node: usize,
}

impl Device for Opened {
    fn timeout(&mut self) -> Result<u32, String> {
        let world = self.world.upgrade().ok_or("no world")?;
        let world = world.lock().unwrap();
        Ok(world.watchdogs.devices[self.node].timeout)
    }

    fn set_timeout(&mut self, seconds: u32) -> Result<(), String> {
        let world = self.world.upgrade().ok_or("no world")?;
        let mut world = world.lock().unwrap();
        world.watchdogs.devices[self.node].timeout = seconds;
        world.count_anew(self.node);
        Ok(())
    }

    fn can_be_disabled(&self) -> bool {
        true
    }

    fn keep_alive(&mut self) -> Result<(), String> {
        let world = self.world.upgrade().ok_or("no world")?;
        world.lock().unwrap().count_anew(self.node);
        Ok(())
    }

    fn disable(self: Box<Self>) -> Result<(), String> {
        let world = self.world.upgrade().ok_or("no world")?;
        let mut world = world.lock().unwrap();
        world.check_disabled(self.node);
        world.watchdogs.devices[self.node].resets_at = None;
        world.watchdogs.devices[self.node].epoch += 1;
        world.say(self.node, 30, |_| "watchdog disabled".into());
        Ok(())
    }
}
