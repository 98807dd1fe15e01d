// Float32 matrix products for MLX on Linux: OpenBLAS under the name that MLX looks for, and a kernel of our own for up
// to some hundred rows, as generation has them. How OpenBLAS sums a row follows from the number of rows, and it copies
// the matrix whole before it multiplies, which takes longer than one row's product. This kernel sums every row alike, so
// that it has the same bits in any company, and reads the matrix as it lies.

#include <cstring>
#include <omp.h>

extern "C" int scipy_openblas_get_num_threads();
extern "C" void scipy_cblas_sgemm(int, int, int, int, int, int, float, const float*, int, const float*, int, float,
                                  float*, int);

namespace {

constexpr int ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112;
constexpr int MANY = 512;                // rows; a training has more, and OpenBLAS is faster then
constexpr long WORTH_THREADS = 1 << 16;  // elements of the matrix

long products = 0;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int TALL = 4, BROAD = 6;  // rows and columns whose sums the registers hold
#else
constexpr int TALL = 3, BROAD = 4;
#endif
constexpr int WIDTH = 8;     // columns at a time, where there are fewer rows than TALL
constexpr int PANEL = 4;     // vectors of a row of b at a time
constexpr int BLOCK = 64;    // rows at a time: with DEPTH columns they stay in the second cache
constexpr int DEPTH = 1024;  // of b's columns at a time, so that BROAD of them stay in the first cache
constexpr int SHALLOW = 128, ENDLESS = 1 << 30;  // the same of a panel; all of b

template <int N>
struct Vector {
  typedef float Floats __attribute__((vector_size(4 * N), aligned(4)));
  typedef int Places __attribute__((vector_size(4 * N)));
};
constexpr int STEP = PANEL * LANES;

typedef Vector<LANES>::Floats Lanes;
typedef Vector<4>::Floats Four;

const Lanes& at(const float* p) { return *(const Lanes*)p; }

// Sums of neighbours: in each four lanes two of x, then two of y.
Lanes pairs(Lanes x, Lanes y) {
  Vector<LANES>::Places even;
  for (int lane = 0; lane < LANES; ++lane) even[lane] = lane / 4 * 4 + lane % 2 * 2 + (lane % 4 < 2 ? 0 : LANES);
  return __builtin_shuffle(x, y, even) + __builtin_shuffle(x, y, even + 1);
}

template <int N>
Four folded(typename Vector<N>::Floats x) {
  if constexpr (N == 4) {
    return x;
  } else {
    typename Vector<N / 2>::Floats halves[2];
    memcpy(halves, &x, sizeof x);
    return folded<N / 2>(halves[0] + halves[1]);
  }
}

// The sums of four vectors, all in the same order.
Four totals(const Lanes* x) { return folded<LANES>(pairs(pairs(x[0], x[1]), pairs(x[2], x[3]))); }

// c (m, n) = alpha a (m, k) b (k, n) + beta c; b is given by columns where it is transposed.
struct Product {
  int m, n, k;
  float alpha;
  const float* a;
  long lda;
  const float* b;
  long ldb;
  float beta;
  float* c;
  long ldc;

  Product block(long index) const {
    const long first = index * BLOCK;
    Product part = *this;
    part.m = m - first < BLOCK ? m - first : BLOCK;
    part.a += first * lda;
    part.c += first * ldc;
    return part;
  }

  void write(int row, int column, float sum, bool is_first) const {
    float& out = c[row * ldc + column];
    out = alpha * sum + (!is_first ? out : beta == 0 ? 0 : beta * out);
  }
};

// R rows of W columns of a transposed b, each sum in lanes over k. Where b ends earlier its last column is summed
// again, so that all columns are summed by the same instructions. With NEXT the next columns are fetched meanwhile.
template <int R, int W, bool NEXT>
void by_columns(const Product& p, int row, int column, int start, int depth) {
  Lanes sums[(R * W + 3) / 4 * 4] = {};
  const float *a = p.a + row * p.lda + start, *columns[W];
  for (int j = 0; j < W; ++j) columns[j] = p.b + (column + j < p.n ? column + j : p.n - 1) * p.ldb + start;
  int i = 0;
  for (; i + LANES <= depth; i += LANES)
    for (int j = 0; j < W; ++j) {
      const Lanes b = at(columns[j] + i);
      if (NEXT) __builtin_prefetch(columns[j] + W * p.ldb + i);
      for (int r = 0; r < R; ++r) sums[r * W + j] += at(a + r * p.lda + i) * b;
    }
  float sum[sizeof sums / sizeof *sums];
  for (int four = 0; four < R * W; four += 4) *(Four*)(sum + four) = totals(sums + four);
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < W && column + j < p.n; ++j) {
      for (int rest = i; rest < depth; ++rest) sum[r * W + j] += a[r * p.lda + rest] * columns[j][rest];
      p.write(row + r, column + j, sum[r * W + j], start == 0);
    }
}

// All rows from `row` on of W columns, R at a time while there are so many.
template <int R, int W>
void rows_by_columns(const Product& p, int row, int column, int start, int depth) {
  for (; row + R <= p.m; row += R)
    if (row == 0)
      by_columns<R, W, true>(p, row, column, start, depth);
    else
      by_columns<R, W, false>(p, row, column, start, depth);
  if constexpr (R > 1) rows_by_columns<R - 1, W>(p, row, column, start, depth);
}

template <int R, int W>
void all_by_columns(const Product& p, int column, int start, int depth) {
  rows_by_columns<R, W>(p, 0, column, start, depth);
}

// R rows of STEP columns of b, added to sums: a lane for each sum, over k in order.
template <int R>
void by_rows(int k, const float* a, long lda, const float* b, long ldb, float* sums) {
  Lanes s[R][PANEL];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < PANEL; ++j) s[r][j] = at(sums + (r * PANEL + j) * LANES);
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < PANEL; ++j) {
      __builtin_prefetch(b + (i + 8) * ldb + j * LANES);
      for (int r = 0; r < R; ++r) s[r][j] += a[r * lda + i] * at(b + i * ldb + j * LANES);
    }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < PANEL; ++j) *(Lanes*)(sums + (r * PANEL + j) * LANES) = s[r][j];
}

// All rows of STEP columns of b; with many rows, or where b ends earlier, through a copy of b's part.
void all_by_rows(const Product& p, int column, int, int) {
  const int width = p.n - column < STEP ? p.n - column : STEP;
  const bool copies = p.m > 4 || width < STEP;
  float sums[BLOCK * STEP] = {}, panel[SHALLOW * STEP];
  for (int start = 0; start < p.k; start += SHALLOW) {
    const int k = p.k - start < SHALLOW ? p.k - start : SHALLOW;
    const float *a = p.a + start, *b = p.b + start * p.ldb + column;
    if (copies)
      for (int i = 0; i < k; ++i)
        for (int j = 0; j < STEP; ++j) panel[i * STEP + j] = j < width ? b[i * p.ldb + j] : 0;
    const float* from = copies ? panel : b;
    const long ld = copies ? STEP : p.ldb;
    int row = 0;
    for (; row + 6 <= p.m; row += 6) by_rows<6>(k, a + row * p.lda, p.lda, from, ld, sums + row * STEP);
    for (; row + 2 <= p.m; row += 2) by_rows<2>(k, a + row * p.lda, p.lda, from, ld, sums + row * STEP);
    if (row < p.m) by_rows<1>(k, a + row * p.lda, p.lda, from, ld, sums + row * STEP);
  }
  for (int row = 0; row < p.m; ++row)
    for (int j = 0; j < width; ++j) p.write(row, column + j, sums[row * STEP + j], true);
}

// What one thread does of a product: its part of the pairs of a block of rows and a strip of columns.
template <void (*strip)(const Product&, int, int, int), int STEP, int DEPTH>
void share(const Product& p, int thread, int threads) {
  const long strips = (p.n + STEP - 1) / STEP, pairs = strips * ((p.m + BLOCK - 1) / BLOCK);
  for (int start = 0; start < p.k; start += DEPTH)
    for (long pair = pairs * thread / threads; pair < pairs * (thread + 1) / threads; ++pair)
      strip(p.block(pair / strips), pair % strips * STEP, start, p.k - start < DEPTH ? p.k - start : DEPTH);
}

template <void (*strip)(const Product&, int, int, int), int STEP, int DEPTH>
void run(const Product& p) {
  const bool is_small = (long)p.n * p.k * (1 + p.m / BLOCK) < WORTH_THREADS;
  const int threads = is_small ? 1 : scipy_openblas_get_num_threads();
  if (threads == 1) return share<strip, STEP, DEPTH>(p, 0, 1);
#pragma omp parallel num_threads(threads)
  share<strip, STEP, DEPTH>(p, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace

extern "C" {

int gpt2_mlx_most_rows = MANY;  // up to so many this kernel multiplies; with 0 OpenBLAS multiplies all

// How many products have come here: proof that MLX calls this library.
long gpt2_mlx_products() { return __atomic_load_n(&products, __ATOMIC_RELAXED); }

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  __atomic_fetch_add(&products, 1, __ATOMIC_RELAXED);
  const Product product{m, n, k, alpha, a, lda, b, ldb, beta, c, ldc};
  if (order != ROW_MAJOR || trans_a != NO_TRANS || m > gpt2_mlx_most_rows || k == 0)
    scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  else if (trans_b == NO_TRANS)
    run<all_by_rows, STEP, ENDLESS>(product);
  else if (m < TALL)
    run<all_by_columns<TALL - 1, WIDTH>, WIDTH, DEPTH>(product);
  else
    run<all_by_columns<TALL, BROAD>, BROAD, DEPTH>(product);
}

}  // extern "C"
