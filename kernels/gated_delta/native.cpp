// The gated delta rule, forward and backward, for one (sequence, value head) per task. With h [K, V] the state before a
// chunk, kk_ij = <k_i, k_j>, qk_ij = <q_i, k_j> and the decays of chunk.h,
//
//     R = V - grown K h;   (I + strict(D kk) diag(beta)) E = R;   U = beta E      E: what each write corrects
//     O = grown Q h + (D qk) U;   h' = grown_C h + K^T (left U)
//
// A chunk is so short that the recurrence's own 6 K V operations per token dominate, and it stays in L1 with its state.

#include "../native/call.h"

namespace hybridlm {
namespace {

template <class T, class In>
struct Problem {
    Call call;
    const In *q, *k, *v;     // [tokens, H, K], [tokens, H, K], [tokens, HV, V]
    const T *decay, *beta;   // [tokens, HV]
    const T* initial_state;  // [N, HV, K, V] or null
    T* corrections;          // E [tokens, HV, V], or null where no gradient is wanted
    T* states;               // [segments, HV, K, V] at each segment's start, or null

    const Layout& layout() const { return call.layout; }
    T scale() const { return T(call.scale); }
};

// The queries and keys of a chunk: rows 0..C-1 are q (scaled), C..2C-1 k.
template <class T>
struct Chunk {
    Decays<T> decays;
    alignas(64) T beta[C];
    alignas(64) T products[2][C][C];  // D qk, D kk, zero above the diagonal
    T *rows, *cols;                   // [2C, K] and its transpose [K, 2C]

    void take(Arena& arena, const Sizes<T>& size) {
        rows = arena.take<T>(2 * C * size.K);
        cols = arena.take<T>(2 * C * size.K);
    }

    template <class In>
    void prepare(const Problem<T, In>& p, const Sizes<T>& size, int64_t head, int64_t start, int count,
                 int64_t ahead) {
        const Layout& x = p.layout();
        load(Tokens<const In>(p.q, x.heads, head / x.group, x.K), start, count, ahead, rows, size.K);
        load(Tokens<const In>(p.k, x.heads, head / x.group, x.K), start, count, ahead, rows + C * size.K, size.K);
        load(Tokens<const T>(p.beta, x.value_heads(), head, 1), start, count, 0, beta, 1);
        decays.prepare(Tokens<const T>(p.decay, x.value_heads(), head, 1), start, count);
        const T scale = p.scale();
        for (int64_t i = 0; i < C * size.K; i++) rows[i] *= scale;
        transpose<T>(2 * C, size.K, rows, size.K, cols, 2 * C);
        alignas(64) T buffer[2 * C * C];
        multiply_in_parts<T>(2 * C, C, size.K, {cols, 1, 2 * C}, cols + C, 2 * C, &products[0][0][0], buffer);
        for (auto& product : products)
            for (int i = 0; i < C; i++)
                for (int j = 0; j < C; j += LANES<T>)
                    vec(&product[i][j]) = up_to<T>(i, j, vec(&product[i][j]) * vec(&decays.pair[i][j]));
    }
    const T* k_rows(const Sizes<T>& size) const { return rows + C * size.K; }
};

// Forward

template <class T, class In>
struct ForwardArguments {
    Problem<T, In> problem;
    In* o;           // [tokens, HV, V]
    T* final_state;  // [N, HV, K, V]
};

template <class T, class In>
class Forward {
    const Problem<T, In>& p;
    const ForwardArguments<T, In>& outputs;
    Sizes<T> size;
    Arena arena;
    Chunk<T> chunk;
    T *state, *read, *e, *u;  // [K, V]; [2C, V] read by q and by k; [C, V] each

    void take() {
        chunk.take(arena, size);
        state = arena.take<T>(size.K * size.ldv);
        read = arena.take<T>(2 * C * size.ldv);
        e = arena.take<T>(C * size.ldv);
        u = arena.take<T>(C * size.ldv);
    }

   public:
    explicit Forward(const ForwardArguments<T, In>& x) : p(x.problem), outputs(x), size(p.layout()) {
        take();
        arena.allocate();
        take();
    }

    void run(int64_t n, int64_t head) {
        const Layout& x = p.layout();
        int64_t matrix = x.K * x.V, heads = x.value_heads();
        load_state(p.initial_state ? p.initial_state + (n * heads + head) * matrix : nullptr, x.K, x.V, state, size.ldv);
        int64_t segment = x.first_segment(n);
        for (int64_t t = 0; t < x.length(n); t += C) {
            if (p.states && t % SEGMENT == 0)
                store_state(state, size.ldv, x.K, x.V, p.states + (segment++ * heads + head) * matrix);
            step(head, x.begin[n] + t, int(std::min<int64_t>(C, x.length(n) - t)));
        }
        store_state(state, size.ldv, x.K, x.V, outputs.final_state + (n * heads + head) * matrix);
    }

   private:
    void step(int64_t head, int64_t start, int count) {
        const Layout& x = p.layout();
        const Decays<T>& d = chunk.decays;
        chunk.prepare(p, size, head, start, count, C);
        load(Tokens<const In>(p.v, x.value_heads(), head, x.V), start, count, C, e, size.ldv);
        multiply<T>(2 * C, size.V, size.K, {chunk.cols, 1, 2 * C}, state, size.ldv, read, size.ldv);
        for (int i = 0; i < C; i++)
            for (int64_t n = 0; n < size.V; n += LANES<T>)
                vec(e + i * size.ldv + n) -= d.grown[i] * vec(read + (C + i) * size.ldv + n);
        solve_lower(chunk.products[1], chunk.beta, e, size.ldv, size.V);
        if (p.corrections) store(e, size.ldv, start, count, C, Tokens<T>(p.corrections, x.value_heads(), head, x.V));
        scale_rows(chunk.beta, e, size.ldv, u, size.ldv, size.V);
        add_causal<T, false>(chunk.products[0], u, size.ldv, d.grown, read, size.ldv, size.V);
        store(read, size.ldv, start, count, C, Tokens<In>(outputs.o, x.value_heads(), head, x.V));
        scale_rows(d.left, u, size.ldv, u, size.ldv, size.V);
        multiply<T>(size.K, size.V, C, {chunk.k_rows(size), 1, size.K}, u, size.ldv, state, size.ldv, d.whole());
    }
};

// Backward

template <class T, class In>
struct BackwardArguments {
    Problem<T, In> problem;
    const In* dout;         // of o
    const T* dfinal_state;  // [N, HV, K, V]
    In *dq, *dk;            // per value head: [tokens, HV, K]
    In* dv;
    T *dg, *dbeta;          // [tokens, HV]
    T* dinitial_state;
};

template <class T, class In>
class Backward {
    static constexpr int CHUNKS = SEGMENT / C;

    const Problem<T, In>& p;
    const BackwardArguments<T, In>& grads;
    Sizes<T> size;
    Arena arena;
    Chunk<T> chunk[CHUNKS];
    T *states[CHUNKS], *e[CHUNKS], *u[CHUNKS];  // [K, V], [C, V], [C, V]
    T* dstate;                                  // [K, V], of the state behind the tokens done so far
    T *dout, *du;                               // [2C, V]: rows 0..C-1 dO, C..2C-1 dE; [C, V]
    T *dout_cols, *u_cols;                      // transposes [V, 2C], [V, C]
    T *dread, *dwrite;                          // [K, 2C]: h dO, h dE; [K, C]: dh' U
    T *dq, *dk, *rows;                          // [K, C], [K, C], [C, K]

    void take() {
        for (int i = 0; i < CHUNKS; i++) {
            chunk[i].take(arena, size);
            states[i] = arena.take<T>(size.K * size.ldv);
            e[i] = arena.take<T>(C * size.ldv);
            u[i] = arena.take<T>(C * size.ldv);
        }
        dstate = arena.take<T>(size.K * size.ldv);
        dout = arena.take<T>(2 * C * size.ldv);
        du = arena.take<T>(C * size.ldv);
        dout_cols = arena.take<T>(2 * C * size.V);
        u_cols = arena.take<T>(C * size.V);
        dread = arena.take<T>(2 * C * size.K);
        dwrite = arena.take<T>(C * size.K);
        dq = arena.take<T>(C * size.K);
        dk = arena.take<T>(C * size.K);
        rows = arena.take<T>(C * size.K);
    }

   public:
    explicit Backward(const BackwardArguments<T, In>& x) : p(x.problem), grads(x), size(p.layout()) {
        take();
        arena.allocate();
        take();
    }

    void run(int64_t n, int64_t head) {
        const Layout& x = p.layout();
        int64_t place = (n * x.value_heads() + head) * x.K * x.V, length = x.length(n);
        int64_t first = x.first_segment(n), segments = (length + SEGMENT - 1) / SEGMENT;
        load_state(grads.dfinal_state + place, x.K, x.V, dstate, size.ldv);
        for (int64_t s = segments - 1; s >= 0; s--) {
            int64_t start = x.begin[n] + s * SEGMENT, end = x.begin[n] + std::min(length, (s + 1) * SEGMENT);
            rebuild(head, first + s, start, end);
            for (int64_t i = (end - start - 1) / C; i >= 0; i--)
                step(int(i), head, start + i * C, int(std::min<int64_t>(C, end - start - i * C)));
        }
        store_state(dstate, size.ldv, x.K, x.V, grads.dinitial_state + place);
    }

   private:
    // The segment's chunks, and the state before each from the one kept at its start.
    void rebuild(int64_t head, int64_t segment, int64_t start, int64_t end) {
        const Layout& x = p.layout();
        load_state(p.states + (segment * x.value_heads() + head) * x.K * x.V, x.K, x.V, states[0], size.ldv);
        for (int i = 0; start + i * C < end; i++) {
            int64_t at = start + i * C;
            int count = int(std::min<int64_t>(C, end - at));
            chunk[i].prepare(p, size, head, at, count, -SEGMENT);
            load(Tokens<const T>(p.corrections, x.value_heads(), head, x.V), at, count, -SEGMENT, e[i], size.ldv);
            scale_rows(chunk[i].beta, e[i], size.ldv, u[i], size.ldv, size.V);
            if (at + C >= end) break;
            scale_rows(chunk[i].decays.left, u[i], size.ldv, du, size.ldv, size.V);
            multiply<T>(size.K, size.V, C, {chunk[i].k_rows(size), 1, size.K}, du, size.ldv, states[i + 1], size.ldv,
                        chunk[i].decays.whole(), states[i]);
        }
    }

    void step(int i, int64_t head, int64_t start, int count) {
        const Layout& x = p.layout();
        const Chunk<T>& c = chunk[i];
        const Decays<T>& d = c.decays;
        T* de = dout + C * size.ldv;
        alignas(64) T dbeta[C], dg[C];
        load(Tokens<const In>(grads.dout, x.value_heads(), head, x.V), start, count, -C, dout, size.ldv);
        // dU = (D qk)^T dO + left K dh' - strict(D kk)^T dE;  dE = beta dU = dV
        multiply<T>(C, size.V, size.K, {c.cols + C, 1, 2 * C}, dstate, size.ldv, du, size.ldv);
        add_causal<T, true>(c.products[0], dout, size.ldv, d.left, du, size.ldv, size.V);
        solve_lower_adjoint(c.products[1], c.beta, du, size.ldv, size.V);
        scale_rows(c.beta, du, size.ldv, de, size.ldv, size.V);
        dot_rows(e[i], size.ldv, du, size.ldv, size.V, dbeta);
        store(de, size.ldv, start, count, -C, Tokens<In>(grads.dv, x.value_heads(), head, x.V));
        store(dbeta, 1, start, count, 0, Tokens<T>(grads.dbeta, x.value_heads(), head, 1));
        transpose<T>(2 * C, size.V, dout, size.ldv, dout_cols, 2 * C);
        transpose<T>(C, size.V, u[i], size.ldv, u_cols, C);
        multiply<T>(size.K, 2 * C, size.V, {states[i], size.ldv, 1}, dout_cols, 2 * C, dread, 2 * C);
        multiply<T>(size.K, C, size.V, {dstate, size.ldv, 1}, u_cols, C, dwrite, C);
        key_grads(i, dg);
        store(dg, 1, start, count, 0, Tokens<T>(grads.dg, x.value_heads(), head, 1));
        transpose<T>(size.K, C, dq, C, rows, size.K);
        store(rows, size.K, start, count, -C, Tokens<In>(grads.dq, x.value_heads(), head, x.K));
        transpose<T>(size.K, C, dk, C, rows, size.K);
        store(rows, size.K, start, count, -C, Tokens<In>(grads.dk, x.value_heads(), head, x.K));
        // dh = grown_C dh' + (grown Q)^T dO - (grown K)^T dE
        alignas(64) T minus[C];
        for (int t = 0; t < C; t++) minus[t] = -d.grown[t];
        scale_rows(d.grown, dout, size.ldv, dout, size.ldv, size.V);
        scale_rows(minus, de, size.ldv, de, size.ldv, size.V);
        multiply<T>(size.K, size.V, 2 * C, {c.rows, 1, size.K}, dout, size.ldv, dstate, size.ldv, d.whole());
    }

    // dq, dk [K, C] and dg from dread, dwrite and the pairs within the chunk.
    void key_grads(int i, T* dg) {
        const Chunk<T>& c = chunk[i];
        const Decays<T>& d = c.decays;
        const T scale = p.scale();
        constexpr int L = LANES<T>;
        alignas(64) T from_start[C], to_end[C];
        for (int t = 0; t < C; t += L) {
            Vec<T> grown = vec(&d.grown[t]), left = vec(&d.left[t]), read = {}, write = {};
            for (int64_t m = 0; m < size.K; m++) {
                Vec<T> by_q = grown * vec(dread + m * 2 * C + t), by_k = grown * vec(dread + m * 2 * C + C + t);
                Vec<T> q = vec(c.cols + m * 2 * C + t), k = vec(c.cols + m * 2 * C + C + t);
                Vec<T> written = left * vec(dwrite + m * C + t);
                read += q * by_q - k * by_k;
                write += k * written;
                vec(dq + m * C + t) = scale * by_q;
                vec(dk + m * C + t) = written - by_k;
            }
            vec(&from_start[t]) = read;
            vec(&to_end[t]) = write;
        }
        alignas(64) T dpair[2][C][C], pair[C][C], buffer[2 * C * C];  // dO U^T, dE U^T: adjoints of D qk and minus those of D kk
        multiply_in_parts<T>(2 * C, C, size.V, {dout_cols, 1, 2 * C}, u_cols, C, &dpair[0][0][0], buffer);
        alignas(64) T to_q[C][C], from_q[C][C], kk[C][C];
        for (int r = 0; r < C; r++)
            for (int j = 0; j < C; j += L) {
                Vec<T> by_q = vec(&dpair[0][r][j]), by_k = vec(&dpair[1][r][j]), decay = vec(&d.pair[r][j]);
                vec(&pair[r][j]) = vec(&c.products[0][r][j]) * by_q - vec(&c.products[1][r][j]) * by_k;
                vec(&from_q[r][j]) = up_to<T>(r, j, by_q * decay);
                vec(&kk[r][j]) = up_to<T>(r - 1, j, by_k * decay);
            }
        gate_grads(pair, from_start, to_end, d.whole() * dot_states(states[i], dstate, size), dg);
        transpose<T>(C, C, &from_q[0][0], C, &to_q[0][0], C);
        transpose<T>(C, C, &kk[0][0], C, &pair[0][0], C);
        for (int r = 0; r < C; r++)
            for (int j = 0; j < C; j += L) {
                vec(&to_q[r][j]) *= scale;
                vec(&kk[r][j]) = -(vec(&kk[r][j]) + vec(&pair[r][j]));
            }
        const T* k = c.k_rows(size);
        multiply<T>(size.K, C, C, {k, 1, size.K}, &to_q[0][0], C, dq, C, 1);
        multiply<T>(size.K, C, C, {c.rows, 1, size.K}, &from_q[0][0], C, dk, C, 1);
        multiply<T>(size.K, C, C, {k, 1, size.K}, &kk[0][0], C, dk, C, 1);
    }
};

}  // namespace
}  // namespace hybridlm

using namespace hybridlm;

extern "C" void hybridlm_gated_delta_forward(const Call* call) {
    typed<ForwardArguments>(call, [](const auto& x) { for_each_head<Forward>(x); });
}

extern "C" void hybridlm_gated_delta_backward(const Call* call) {
    typed<BackwardArguments>(call, [](const auto& x) { for_each_head<Backward>(x); });
}
