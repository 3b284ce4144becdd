//! A thread with an async runtime of its own, on which requests to an object store run.
//!
//! Whoever calls the store waits on a channel, never inside a runtime: so a call works from a plain
//! thread, from a blocking task and from an async one alike. It knows nothing of objects.

use std::{future::Future, io, sync::mpsc, thread};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Which clock delays and deadlines go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The machine's.
    Real,
    /// One that jumps to the next timer whenever nothing else is to be done: hours pass at once.
    #[cfg(feature = "testing")]
    Simulated,
}

/// See the module. Requests under way end when it is dropped.
#[derive(Debug)]
pub(super) struct Engine {
    handle: Handle,
    /// Dropped, it ends the thread.
    _alive: oneshot::Sender<()>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread or no poll descriptor.
    pub(super) fn start(pace: Pace) -> io::Result<Engine> {
        let mut builder = Builder::new_current_thread();
        builder.enable_all();
        match pace {
            Pace::Real => {}
            #[cfg(feature = "testing")]
            Pace::Simulated => {
                builder.start_paused(true);
            }
        }
        let runtime = builder.build()?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("object-store".into()).spawn(move || {
            let _ = runtime.block_on(ended);
            // A name look-up may hang in a thread of the runtime's: nobody waits for that.
            runtime.shutdown_background();
        })?;
        Ok(Engine { handle, _alive: alive })
    }

    /// Runs `work` to its end; `None` when it panicked.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, wait) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let _ = done.send(work.await);
        });
        wait.recv().ok()
    }
}
