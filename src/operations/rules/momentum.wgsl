// The rule of momentum.rs. Slot 0 is the accumulator.

const LEARNING_RATE: u32 = 0u;
const MU: u32 = 1u;
const NESTEROV_COEFFICIENT: u32 = 2u;
const USE_NESTEROV: u32 = 3u;

fn momentum(g: f32, state: State) -> State {
    let a = flush(flush(state.slot0 * coefficient(MU)) + g);
    var step = flush(a * coefficient(LEARNING_RATE));
    if (coefficient(USE_NESTEROV) == 1.0) {
        step = flush(
            flush(g * coefficient(LEARNING_RATE)) + flush(a * coefficient(NESTEROV_COEFFICIENT))
        );
    }
    return State(flush(state.variable - step), a, 0.0);
}
