#[used]
#[unsafe(link_section = ".preinit_array")]
static EARLY: extern "C" fn(i32, *const *const std::ffi::c_char, *const *const std::ffi::c_char) = early;
extern "C" fn early(argc: i32, argv: *const *const std::ffi::c_char, _e: *const *const std::ffi::c_char) {
    let args: Vec<String> = (0..argc as usize).map(|i| unsafe { std::ffi::CStr::from_ptr(*argv.add(i)) }.to_string_lossy().into_owned()).collect();
    if args.get(1).is_some_and(|a| a == "--help") {
        println!("early help {:?}", clap::Command::new("mqat").about("x").render_help().to_string());
        std::process::exit(0);
    }
}
fn main() {
    let t = tch::Tensor::from(1i64);
    println!("{t:?}");
}
