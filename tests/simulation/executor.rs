//! One thread, virtual time: polls what is ready in the order in which it became ready, and when
//! nothing is, moves the time to the next event. Same seed, same order.

use crate::world::{Process, Shared, World};
use futures::future::BoxFuture;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type Ready = Arc<Mutex<VecDeque<usize>>>;

struct Bell {
    task: usize,
    rung: AtomicBool,
    ready: Ready,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            self.ready.lock().unwrap().push_back(self.task);
        }
    }
}

struct Task {
    process: Process,
    work: BoxFuture<'static, ()>,
    bell: Arc<Bell>,
    waker: Waker,
}

pub struct Executor {
    pub world: Shared,
    tasks: BTreeMap<usize, Task>,
    next_task: usize,
    ready: Ready,
    /// Woken while their process was frozen.
    held: Vec<usize>,
    polls_at_this_instant: u64,
}

impl Executor {
    pub fn new(world: Shared) -> Self {
        Self {
            world,
            tasks: BTreeMap::new(),
            next_task: 0,
            ready: Ready::default(),
            held: Vec::new(),
            polls_at_this_instant: 0,
        }
    }

    /// Runs until this moment of true time, or until the world says that it has seen enough.
    pub fn run_until(&mut self, end_us: u64) {
        loop {
            self.take_in_new_tasks();
            let next = self.ready.lock().unwrap().pop_front();
            if let Some(task) = next {
                self.poll(task);
                self.polls_at_this_instant += 1;
                if self.polls_at_this_instant > 20_000 {
                    self.world.lock().unwrap().violation("LIVELOCK", "a task never waits");
                }
                if self.world.lock().unwrap().failed.is_some() {
                    return;
                }
                continue;
            }
            let mut world = self.world.lock().unwrap();
            if world.failed.is_some() || world.watched.twins {
                return;
            }
            let Some(at) = world.next_event_at() else { return };
            if at > end_us {
                world.now_us = end_us;
                return;
            }
            if at > world.now_us {
                self.polls_at_this_instant = 0;
            }
            world.fire_next();
            drop(world);
            self.after_event();
        }
    }

    /// Freezing, killing and resuming take effect between two polls.
    fn after_event(&mut self) {
        let (killed, resumed) = self.world.lock().unwrap().take_process_changes();
        for process in killed {
            // Dropped outside the lock: destructors of futures may use the world.
            let dead: Vec<usize> = self
                .tasks
                .iter()
                .filter(|(_, task)| task.process == process)
                .map(|(id, _)| *id)
                .collect();
            for id in dead {
                drop(self.tasks.remove(&id));
            }
        }
        if resumed {
            let held = std::mem::take(&mut self.held);
            self.ready.lock().unwrap().extend(held);
        }
    }

    fn take_in_new_tasks(&mut self) {
        let new = std::mem::take(&mut self.world.lock().unwrap().spawned);
        for (process, work) in new {
            let id = self.next_task;
            self.next_task += 1;
            let bell =
                Arc::new(Bell { task: id, rung: AtomicBool::new(true), ready: self.ready.clone() });
            let waker = Waker::from(bell.clone());
            self.tasks.insert(id, Task { process, work, bell, waker });
            self.ready.lock().unwrap().push_back(id);
        }
    }

    fn poll(&mut self, id: usize) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        {
            let world = self.world.lock().unwrap();
            match world.fate(task.process) {
                crate::world::Fate::Runs => {}
                crate::world::Fate::Frozen => {
                    drop(world);
                    self.held.push(id);
                    return;
                }
                crate::world::Fate::Dead => {
                    drop(world);
                    drop(self.tasks.remove(&id));
                    return;
                }
            }
        }
        task.bell.rung.store(false, Ordering::SeqCst);
        let waker = task.waker.clone();
        let done =
            matches!(task.work.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
        if done {
            drop(self.tasks.remove(&id));
        }
        // A task may have ended its own process.
        self.after_event();
    }
}

/// Waits until a moment of true time. Dropping it is free: the wake-up goes nowhere.
pub struct Sleep {
    pub world: Shared,
    pub until_us: u64,
    pub asked: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let shared = self.world.clone();
        let mut world = shared.lock().unwrap();
        if world.now_us >= self.until_us {
            return Poll::Ready(());
        }
        if !self.asked {
            self.asked = true;
            let waker = context.waker().clone();
            world.at(self.until_us, move |_: &mut World| waker.wake());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::OPERATOR;
    use futures::FutureExt;

    #[test]
    fn time_moves_only_when_nothing_is_ready_and_order_is_kept() {
        let world = World::empty(1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        for (name, wait) in [("late", 300_u64), ("early", 100), ("also early", 100)] {
            let (shared, seen) = (world.clone(), seen.clone());
            let work = async move {
                Sleep { world: shared.clone(), until_us: wait, asked: false }.await;
                seen.lock().unwrap().push((name, shared.lock().unwrap().now_us));
            };
            world.lock().unwrap().spawned.push((OPERATOR, work.boxed()));
        }
        Executor::new(world.clone()).run_until(1_000);
        assert_eq!(*seen.lock().unwrap(), [("early", 100), ("also early", 100), ("late", 300)]);
        assert_eq!(world.lock().unwrap().now_us, 300, "nothing more to wait for");
    }
}
