package imagecache

import "sync"

// PerImage keeps a value for each of some images, for as long as the Engine has the image as it was: an ID always stands for the
// same content, but the layers are in other directories once the image has been removed and pulled again. The zero value is
// empty. Its methods may be called from several goroutines.
type PerImage[T any] struct {
	mu     sync.Mutex // guards following
	images *Images
	kept   map[*Image]T
}

// Get returns the value for an image that Find has returned, nil included.
func (p *PerImage[T]) Get(image *Image) (value T, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	value, ok = p.kept[image]
	return value, ok
}

// Put keeps the value for an image that Find has returned with images, and drops those for images that are not among them.
func (p *PerImage[T]) Put(images *Images, image *Image, value T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.images != images {
		previous := p.kept
		p.images, p.kept = images, map[*Image]T{}
		for _, row := range images.Rows {
			if value, ok := previous[row]; ok {
				p.kept[row] = value
			}
		}
	}
	p.kept[image] = value
}
