//! `shoal`, and under the names `mount.fuse.shoal` and `umount.fuse.shoal` the helpers of mount(8) and
//! umount(8).

#[global_allocator]
static HEAP: shoal::fuse::heap::Heap = shoal::fuse::heap::Heap;

fn main() -> std::process::ExitCode {
    shoal::fuse::cli::main(std::env::args_os())
}
