//! A check of a device that stays reserved after its last host has left: it writes what it repairs as a
//! registered host, and leaves the reservation as it was.

use shoal::base::Incarnation;
use shoal::cluster::keys::key_of;
use shoal::device::pr::KernelReservations;
use shoal::device::reservation::Reservations;
use shoal::device::{FileDevice, Fitness, fitness};
use std::sync::Arc;

/// Registered for as long as this lives, where that was needed.
pub struct Reserved(Option<(Arc<dyn Reservations>, u64)>);

impl Reserved {
    /// On the way to the device that the check takes.
    pub fn enter(device: &Arc<FileDevice>, format_id: u64) -> Reserved {
        match fitness(device) {
            Fitness::Unfit(_) => Reserved(None),
            Fitness::Fit | Fitness::OnRequest(_) => {
                let key = key_of(format_id, Incarnation(uuid::Uuid::new_v4().as_u64_pair().1));
                Reserved::on(Arc::new(KernelReservations::new(device.clone())), key)
            }
        }
    }

    /// Where a reservation stands and this host has no key. One that it has lets it write, and goes on doing so:
    /// with it the reservation might end, and let in who was kept off. Registered beside others' keys it ends
    /// with those alone.
    pub fn on(device: Arc<dyn Reservations>, key: u64) -> Reserved {
        let stands = device.report().map_or(true, |report| report.held.is_some());
        let registered = stands && device.register(0, key).is_ok();
        Reserved(registered.then_some((device, key)))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some((device, key)) = self.0.take() {
            // What stays is the key of a mount that is over: the next first one takes it away.
            let _ = device.unregister(key);
        }
    }
}
