// Float32 matrix products for MLX on Linux: OpenBLAS under the name that MLX looks for, and a kernel of our own for few
// rows, as decoding has them. How OpenBLAS sums a row follows from the number of rows, and it copies the matrix whole
// before it multiplies, which takes longer than one row's product. This kernel sums every row alike, so that it has the
// same bits in any company, and reads the matrix once, as it lies.

extern "C" int scipy_openblas_get_num_threads();
extern "C" void scipy_cblas_sgemm(int, int, int, int, int, int, float, const float*, int, const float*, int, float,
                                  float*, int);

namespace {

constexpr int ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112;
constexpr int FEW = 32;                  // rows; with more, the copy pays
constexpr long WORTH_THREADS = 1 << 16;  // elements of the matrix

long products = 0;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int WIDTH = 8;    // vectors; narrower strips of b cost more than sums that find no register
constexpr int PANEL = 4;    // vectors, of six rows at a time
constexpr int DEPTH = 128;  // rows of a panel, so that it stays in the first cache
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

const Lanes& at(const float* p) { return *(const Lanes*)p; }

float total(Lanes lanes) {
  float sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
  return sum;
}

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

  void write(int row, int column, float sum) const {
    float& out = c[row * ldc + column];
    out = alpha * sum + (beta == 0 ? 0 : beta * out);
  }
};

// R rows of WIDTH columns of a transposed b, each sum in lanes over k. Where b ends earlier its last column is summed
// again, so that all columns are summed by the same instructions.
template <int R>
void by_columns(const Product& p, int row, int column) {
  Lanes sums[R][WIDTH] = {};
  const float* columns[WIDTH];
  for (int j = 0; j < WIDTH; ++j) columns[j] = p.b + (column + j < p.n ? column + j : p.n - 1) * p.ldb;
  int i = 0;
  for (; i + LANES <= p.k; i += LANES)
    for (int j = 0; j < WIDTH; ++j)
      for (int r = 0; r < R; ++r) sums[r][j] += at(p.a + (row + r) * p.lda + i) * at(columns[j] + i);
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < WIDTH && column + j < p.n; ++j) {
      float sum = total(sums[r][j]);
      for (int rest = i; rest < p.k; ++rest) sum += p.a[(row + r) * p.lda + rest] * columns[j][rest];
      p.write(row + r, column + j, sum);
    }
}

void all_by_columns(const Product& p, int column) {
  int row = 0;
  for (; row + 2 <= p.m; row += 2) by_columns<2>(p, row, column);
  if (row < p.m) by_columns<1>(p, row, column);
}

// R rows of W * LANES columns of b, added to sums: a lane for each sum, over k in order.
template <int R, int W>
void by_rows(int k, const float* a, long lda, const float* b, long ldb, float* sums) {
  Lanes s[R][W];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < W; ++j) s[r][j] = at(sums + (r * W + j) * LANES);
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < W; ++j) {
      __builtin_prefetch(b + (i + 8) * ldb + j * LANES);
      for (int r = 0; r < R; ++r) s[r][j] += a[r * lda + i] * at(b + i * ldb + j * LANES);
    }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < W; ++j) *(Lanes*)(sums + (r * W + j) * LANES) = s[r][j];
}

// All rows of W * LANES columns of b; with many rows through a copy of b's part, which is read again for each few.
template <int W, bool COPIES>
void all_by_rows(const Product& p, int column) {
  constexpr int STEP = W * LANES;
  float sums[FEW * STEP] = {}, panel[COPIES ? DEPTH * STEP : 1];
  const int depth = COPIES ? DEPTH : p.k;
  for (int start = 0; start < p.k; start += depth) {
    const int k = p.k - start < depth ? p.k - start : depth;
    const float *a = p.a + start, *b = p.b + start * p.ldb + column;
    if (COPIES)
      for (int i = 0; i < k; ++i)
        for (int j = 0; j < STEP; ++j) panel[i * STEP + j] = b[i * p.ldb + j];
    const float* from = COPIES ? panel : b;
    const long ld = COPIES ? STEP : p.ldb;
    int row = 0;
    if (COPIES)
      for (; row + 6 <= p.m; row += 6) by_rows<6, W>(k, a + row * p.lda, p.lda, from, ld, sums + row * STEP);
    for (; row + 2 <= p.m; row += 2) by_rows<2, W>(k, a + row * p.lda, p.lda, from, ld, sums + row * STEP);
    if (row < p.m) by_rows<1, W>(k, a + row * p.lda, p.lda, from, ld, sums + row * STEP);
  }
  for (int row = 0; row < p.m; ++row)
    for (int j = 0; j < STEP; ++j) p.write(row, column + j, sums[row * STEP + j]);
}

template <void (*columns)(const Product&, int), int STEP>
void run(const Product& p) {
  const int threads = (long)p.n * p.k < WORTH_THREADS ? 1 : scipy_openblas_get_num_threads();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int column = 0; column < p.n; column += STEP) columns(p, column);
}

}  // namespace

extern "C" {

int gpt2_mlx_few_rows = FEW;  // up to so many this kernel multiplies; with 0 OpenBLAS multiplies all

// How many products have come here: proof that MLX calls this library.
long gpt2_mlx_products() { return __atomic_load_n(&products, __ATOMIC_RELAXED); }

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  __atomic_fetch_add(&products, 1, __ATOMIC_RELAXED);
  const Product product{m, n, k, alpha, a, lda, b, ldb, beta, c, ldc};
  const bool few = order == ROW_MAJOR && trans_a == NO_TRANS && m <= gpt2_mlx_few_rows;
  const bool whole = n % (WIDTH * LANES) == 0;
  if (few && trans_b == TRANS)
    run<all_by_columns, WIDTH>(product);
  else if (few && trans_b == NO_TRANS && whole && m <= 4)
    run<all_by_rows<WIDTH, false>, WIDTH * LANES>(product);
  else if (few && trans_b == NO_TRANS && whole)
    run<all_by_rows<PANEL, true>, PANEL * LANES>(product);
  else
    scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

}  // extern "C"
